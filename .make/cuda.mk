# The CUDA engine builds, links and compiles its kernels on machines with no GPU. See docs/design/cuda.md.
.PHONY: cuda-toolchain cuda cuda-build cuda-test kernels

# Where the toolkit's wheels, the link-time libcuda and the file `env` are.
CUDA_TOOLCHAIN ?= $(or $(TOKAMAK_CUDA_TOOLCHAIN),$(CURDIR)/.cuda)
CUDA_ENV = . $(CUDA_TOOLCHAIN)/env

$(CUDA_TOOLCHAIN)/env: engine/cuda/driver/toolchain/setup.sh engine/cuda/driver/toolchain/trampolines.sh
	sh engine/cuda/driver/toolchain/setup.sh $(CUDA_TOOLCHAIN)

cuda-toolchain: $(CUDA_TOOLCHAIN)/env ## get what -tags cuda needs to build (an installed toolkit, else NVIDIA's pip wheels)

cuda: cuda-build kernels ## everything that can be checked of the CUDA engine with no GPU

cuda-build: $(CUDA_TOOLCHAIN)/env ## vet, build and link with -tags cuda; run the tests that need no GPU
	$(CUDA_ENV) && $(GO) vet -tags cuda ./... && $(GO) build -tags cuda ./... && mkdir -p .gpu && \
	  $(GO) test -c -tags cuda -ldflags='-s -w' -o .gpu/cuda.test ./engine/cuda && $(GO) test -tags cuda ./engine/cuda/...

kernels: $(CUDA_TOOLCHAIN)/env ## compile every kernel to machine code for each supported GPU; fail on register spills
	$(CUDA_ENV) && TOKAMAK_KERNELS=all $(GO) test -tags cuda -count=1 -timeout 30m -run 'TestKernelsCompile' ./engine/cuda

cuda-test: cuda-build ## run the CUDA engine's tests on this machine's GPU
	$(CUDA_ENV) && TOKAMAK_REQUIRE_GPU=1 $(GO) test -tags cuda -count=1 -timeout 30m ./engine/cuda/...
