#!/bin/sh
# setup.sh DIR: makes DIR/env, to be sourced before go build -tags cuda: CUDA_HOME, CGO_CFLAGS, CGO_LDFLAGS, PATH.
# It takes the toolkit in CUDA_HOME or /usr/local/cuda if one is there, else it installs NVIDIA's wheels (539 MB) into DIR.
set -eu
dir=$(realpath -m "$1")
here=$(dirname "$(realpath "$0")")
mkdir -p "$dir"
home=
for h in "${CUDA_HOME:-}" /usr/local/cuda; do
	[ -n "$h" ] && [ -f "$h/include/cuda.h" ] && { home=$h; break; }
done
if [ -z "$home" ]; then
	home=$dir/nvidia/cu13
	# One call: pip --target does not merge into a folder nvidia/ that is there already.
	[ -f "$home/include/cuda.h" ] && [ -f "$home/lib/libnvrtc.so.13" ] && [ -f "$home/bin/nvdisasm" ] ||
		${PYTHON:-python3} -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-deps --upgrade --target "$dir" \
			nvidia-cuda-runtime==13.0.96 nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 \
			nvidia-cuda-cccl==13.0.85 nvidia-cuda-nvrtc==13.0.88 nvidia-cuda-cupti==13.0.85 nvidia-nvtx==13.0.85 \
			nvidia-cuda-cuobjdump==13.2.86 nvidia-cuda-nvdisasm==13.2.86
fi
sh "$here/trampolines.sh" "$home/include" "$dir/lib"
cat >"$dir/env.tmp" <<ENV
export CUDA_HOME='$home'
export CGO_ENABLED=1
export CGO_CFLAGS='-O2 -Wno-deprecated-declarations -I$here/../shim -I$home/include'
export CGO_LDFLAGS='-L$dir/lib'
export PATH="$home/bin:\$PATH"
ENV
mv "$dir/env.tmp" "$dir/env"
echo "CUDA toolkit: $home; build with: . $dir/env && go build -tags cuda ./..."
