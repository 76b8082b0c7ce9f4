# The commands of the README; everything else is CMake.
.PHONY: run test install
PREFIX ?= /usr/local
run:
	@scripts/run.sh
test:
	@scripts/test.sh default
install:
	@scripts/packages.sh
	@cmake --preset default -DQE_BUILD_TESTS=OFF -B build/run >/dev/null
	@cmake --build build/run
	@cmake --install build/run --prefix "$(PREFIX)"
