// Devices: options, what AUTO takes, pinned threads, the environment.
#include <gtest/gtest.h>
#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <cstdlib>

#include <qengine/gemm.h>
#include "kernels/qk.h"
#include "run/device.h"

namespace {

TEST(Device, OptionsAreChecked) {
    qe_device *d = nullptr;
    qe_error err;
    qe_device_options o = {};
    EXPECT_EQ(qe_device_create(&o, &d, &err), QE_E_ARGUMENT);
    o.struct_size = sizeof o;
    o.backend = 9;
    EXPECT_EQ(qe_device_create(&o, &d, &err), QE_E_ARGUMENT);
    o.backend = QE_BACKEND_REF;
    o.threads = -1;
    EXPECT_EQ(qe_device_create(&o, &d, &err), QE_E_ARGUMENT);
    o.threads = 0;
    o.flags = 2;
    EXPECT_EQ(qe_device_create(&o, &d, &err), QE_E_ARGUMENT);
    struct {
        qe_device_options o;
        int64_t           tail;
    } longer = {};
    longer.o.struct_size = sizeof longer;
    longer.o.backend = QE_BACKEND_REF;
    ASSERT_EQ(qe_device_create(&longer.o, &d, &err), QE_OK) << err.message;
    qe_device_destroy(d);
    d = nullptr;
    longer.tail = 1;
    EXPECT_EQ(qe_device_create(&longer.o, &d, &err), QE_E_ARGUMENT);
    EXPECT_EQ(d, nullptr);
    qe_device_destroy(nullptr);
}

// What AUTO takes has to run sessions: not the emulated GPU that is linked into this test.
TEST(Device, AutoTakesWhatRunsModels) {
    qe_device *d = nullptr;
    qe_error err;
    ASSERT_EQ(qe_device_create(nullptr, &d, &err), QE_OK) << err.message;
    EXPECT_FALSE(d->backend->linears_only);
    EXPECT_FALSE(d->facts.flags & QK_DEVICE_EMULATED);
    EXPECT_EQ(d->facts.backend, qk_backend_of(QK_CPU) ? QK_CPU : QK_REF);
    qe_device_destroy(d);
    const qk_backend *cuda = qk_backend_of(QK_CUDA);
    if (!cuda || !cuda->count()) GTEST_SKIP() << "no emulated GPU in this build";
    qe_device_options named = {};
    named.struct_size = sizeof named, named.backend = QE_BACKEND_CUDA;
    ASSERT_EQ(qe_device_create(&named, &d, &err), QE_OK) << err.message;
    EXPECT_TRUE(d->backend->linears_only);
    qe_device_destroy(d);
}

TEST(Device, PinsItsThreadsOnlyWhenAsked) {
    cpu_set_t mine, own;
    ASSERT_EQ(sched_getaffinity(0, sizeof mine, &mine), 0);
    if (CPU_COUNT(&mine) < 2) GTEST_SKIP() << "this process has a single CPU";
    struct Seen {
        std::atomic<int> begun{0};
        pthread_t caller = pthread_self();
        cpu_set_t worker;
    };
    for (uint32_t flags : {0u, (uint32_t)QE_DEVICE_PIN_THREADS}) {
        qe_device_options o = {};
        qe_device *d = nullptr;
        qe_error err;
        o.struct_size = sizeof o, o.backend = QE_BACKEND_CPU, o.threads = 2, o.flags = flags;
        ASSERT_EQ(qe_device_create(&o, &d, &err), QE_OK) << err.message;
        qk_queue q = qe_device_queue(d, nullptr);
        Seen seen;
        CPU_ZERO(&seen.worker);
        // Each task waits for the other to begin, so that both threads have one.
        q.parallel(q.pool, [](void *arg, int32_t, int32_t) {
            Seen *s = (Seen *)arg;
            s->begun++;
            while (s->begun < 2) sched_yield();
            if (!pthread_equal(pthread_self(), s->caller)) sched_getaffinity(0, sizeof s->worker, &s->worker);
        }, &seen, 2);
        EXPECT_EQ(CPU_COUNT(&seen.worker), flags ? 1 : CPU_COUNT(&mine));
        ASSERT_EQ(sched_getaffinity(0, sizeof own, &own), 0);
        EXPECT_TRUE(CPU_EQUAL(&own, &mine)) << "the caller's thread was bound";
        qe_device_destroy(d);
        d = nullptr;
        o.threads = CPU_COUNT(&mine) + 1;
        EXPECT_EQ(qe_device_create(&o, &d, &err), flags ? QE_E_ARGUMENT : QE_OK);
        qe_device_destroy(d);
    }
}

TEST(Device, EnvironmentOverridesAuto) {
    setenv("QE_BACKEND", "ref", 1);
    setenv("QE_THREADS", "3", 1);
    qe_device *d = nullptr;
    qe_error err;
    ASSERT_EQ(qe_device_create(nullptr, &d, &err), QE_OK) << err.message;
    qe_device_info info;
    qe_device_get_info(d, &info);
    EXPECT_EQ(info.backend, QE_BACKEND_REF);
    EXPECT_EQ(info.threads, 3);
    qe_device_destroy(d);
    setenv("QE_BACKEND", "abacus", 1);
    EXPECT_EQ(qe_device_create(nullptr, &d, &err), QE_E_ARGUMENT);
    unsetenv("QE_BACKEND");
    unsetenv("QE_THREADS");
}

}  // namespace
