#!/bin/sh
# trampolines.sh INCLUDE OUT: writes OUT/libcuda.a, a static stand-in for libcuda that is filled from libcuda.so.1 when the program
# starts. INCLUDE holds cuda.h. One binary then serves machines with and without a driver:
#   - no libcuda.so.1: cuInit succeeds, as gorgonia.org/cu's init() would end the process otherwise; all else says NO_DEVICE (100);
#   - cuInit fails: the same, and tokamak_cuda_init holds the code;
#   - an older driver lacks a function: that call says NOT_FOUND (500).
set -eu
include=$1 out=$2
mkdir -p "$out"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

# Every function that cuda.h declares, the names behind its version macros, and cudaProfiler.h, which not every toolkit carries.
{
	echo 'cuProfilerStart( cuProfilerStop('
	echo '#include <cuda.h>' | gcc -I"$include" -E -P -
	echo '#include <cuda.h>' | gcc -D__CUDA_API_VERSION_INTERNAL -I"$include" -E -P -
} | tr '\n' ' ' | grep -oE '\bcu[A-Z][A-Za-z0-9_]* *\(' | tr -d ' (' | grep -v '^cuInit$' | sort -u >"$tmp/names"
[ "$(wc -l <"$tmp/names")" -gt 100 ] || { echo "trampolines.sh: no CUDA functions in $include/cuda.h" >&2; exit 1; }

{
	cat <<'C'
#include <dlfcn.h>
#include <stdlib.h>
static int no_device(void) { return 100; }
static int not_found(void) { return 500; }
static const char *const names[] = {
C
	sed 's/.*/"&",/' "$tmp/names"
	cat <<'C'
};
enum { N = sizeof names / sizeof *names };
__attribute__((visibility("hidden"))) void *cuda_slot[N];
int tokamak_cuda_loaded; /* libcuda.so.1 was found */
int tokamak_cuda_init;   /* what its cuInit returned */
static int (*real_init)(unsigned);
__attribute__((constructor)) static void fill(void) {
	const char *path = getenv("LIBCUDA_PATH");
	void *lib = dlopen(path && *path ? path : "libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
	if (!lib && !(path && *path)) lib = dlopen("/usr/local/nvidia/lib64/libcuda.so.1", RTLD_NOW | RTLD_GLOBAL); /* containers */
	tokamak_cuda_loaded = lib != 0;
	if (lib) *(void **)&real_init = dlsym(lib, "cuInit");
	for (int i = 0; i < N; i++) {
		void *f = lib ? dlsym(lib, names[i]) : 0;
		cuda_slot[i] = f ? f : lib ? (void *)not_found : (void *)no_device;
	}
}
int cuInit(unsigned flags) {
	tokamak_cuda_init = real_init ? real_init(flags) : 100;
	return 0;
}
C
} >"$tmp/slots.c"
case $(uname -m) in
x86_64) awk '{printf ".globl %s\n.type %s,@function\n%s: endbr64; jmp *cuda_slot+%d(%%rip)\n", $1, $1, $1, (NR-1)*8}' "$tmp/names" ;;
aarch64) awk '{printf ".globl %s\n.type %s,%%function\n%s: adrp x16, cuda_slot+%d; ldr x16, [x16, #:lo12:cuda_slot+%d]; br x16\n", $1, $1, $1, (NR-1)*8, (NR-1)*8}' "$tmp/names" ;;
*) echo "trampolines.sh: no trampolines for $(uname -m)" >&2; exit 1 ;;
esac >"$tmp/body"
{ echo .text; cat "$tmp/body"; case $(uname -m) in x86_64) echo '.section .note.GNU-stack,"",@progbits' ;; *) echo '.section .note.GNU-stack,"",%progbits' ;; esac } >"$tmp/tramp.s"
gcc -O1 -fPIC -c "$tmp/slots.c" -o "$tmp/slots.o"
gcc -c "$tmp/tramp.s" -o "$tmp/tramp.o"
ld -r -o "$tmp/cuda.o" "$tmp/slots.o" "$tmp/tramp.o"
rm -f "$out/libcuda.a"
ar rcs "$out/libcuda.a" "$tmp/cuda.o"
