# The two commands of the README; everything else is CMake.
.PHONY: run test
run:
	@scripts/run.sh
test:
	@scripts/test.sh default
