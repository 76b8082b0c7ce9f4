"""What one SM does in a clock, and GPUs (docs/gpu.md). A figure marked # assumed has no source but a guess."""

# Warp instructions per clock and SM. heavy is the half of the FMA pipe that also does IMAD and IDP.
# tc: dense MACs per clock and SM of mma.sync by bits of an element; wg: of wgmma.
ARCH = {
    80: dict(alu=2, fma=2, heavy=2, half=4, xu=.5, uni=2, tc={16: 1024, 8: 2048}, shared=164 << 10, warps=64),
    89: dict(alu=2, fma=4, heavy=2, half=2, xu=.5, uni=2, tc={16: 512, 8: 1024}, shared=100 << 10, warps=48),
    90: dict(alu=2, fma=4, heavy=2, half=4, xu=.5, uni=2, tc={16: 1290, 8: 2580}, wg={16: 2048, 8: 4096},
             shared=228 << 10, warps=64),
    # Only sm_80 code runs there, compiled anew from PTX; its SASS is taken for theirs.
    100: dict(alu=2, fma=4, heavy=2, half=4, xu=.5, uni=2, tc={16: 1290, 8: 2580},  # assumed: as sm_90
              shared=228 << 10, warps=64),
}
GPC = 16  # units of a GPC that clusters are counted on, as in kernels/cuda/cluster_sums.cuh  # assumed
# dram: bytes/s a copy reaches; tensor: dense 16-bit FLOP/s reached (power caps the tensor pipe below its rate at clk);
# l2: bytes per clock, whole chip; latency: clocks from issue of a fill to data in shared memory. peer: bytes per clock and SM
# from other shared memories of the cluster; hop: clocks of such a load, and of a cluster's barrier.
GPU = {
    "a100": dict(arch=80, sms=108, clk=1.41e9, dram=1.835e12, tensor=270e12, l2=5120, latency=700),
    "l40s": dict(arch=89, sms=142, clk=2.10e9, dram=.778e12, tensor=280e12, l2=5120, latency=700),  # assumed
    "h100": dict(arch=90, sms=132, clk=1.755e9, dram=3.0e12, tensor=798e12, l2=5120, latency=800,
                 peer=12, hop=250),  # assumed: peer, hop
    "h200": dict(arch=90, sms=132, clk=1.755e9, dram=4.3e12, tensor=790e12, l2=5120, latency=800,
                 peer=12, hop=250),  # assumed: peer, hop
    "b200": dict(arch=100, sms=148, clk=1.85e9, dram=7.0e12, tensor=706e12, l2=8192, latency=900),  # assumed
}
LAUNCH = 2.0e-6    # seconds per kernel, graph replay
WGMMA_DRAIN = 60   # clocks from the last wgmma's issue to a satisfied wait<0>
