// Macros of avx2_amd64.s. A sum of 16 lanes is a pair of registers: lanes 0..7 and 8..15.

// SUM4 adds four such pairs, whose halves are already added in Y0..Y3, and leaves the sums in X0.
#define SUM4(Y0, X0, Y1, X1, Y2, Y3) \
	VHADDPS Y1, Y0, Y0 \
	VHADDPS Y3, Y2, Y2 \
	VHADDPS Y2, Y0, Y0 \
	VEXTRACTF128 $1, Y0, X1 \
	VADDPS X1, X0, X0

#define CLEAR4(Y0, Y1, Y2, Y3) \
	VXORPS Y0, Y0, Y0 \
	VXORPS Y1, Y1, Y1 \
	VXORPS Y2, Y2, Y2 \
	VXORPS Y3, Y3, Y3

// A unit is 32 elements of a stored row. UNIT_x decodes the one at P by eights and hands each to SINK with its offset in bytes
// as float32 and the sum it belongs to. It may spoil AX and Y8..Y13; Y14 holds eights and Y15 fifteens, as integers.

#define STORE(OFFSET, R, SUM) \
	VMOVUPS R, OFFSET(DI)

#define MULTIPLY(OFFSET, R, SUM) \
	VFMADD231PS OFFSET(SI), R, SUM

#define UNIT_F32(P, SINK, LO, HI) \
	VMOVUPS (P), Y8 \
	VMOVUPS 32(P), Y9 \
	VMOVUPS 64(P), Y10 \
	VMOVUPS 96(P), Y11 \
	SINK(0, Y8, LO) \
	SINK(32, Y9, HI) \
	SINK(64, Y10, LO) \
	SINK(96, Y11, HI)

#define UNIT_F16(P, SINK, LO, HI) \
	VCVTPH2PS (P), Y8 \
	VCVTPH2PS 16(P), Y9 \
	VCVTPH2PS 32(P), Y10 \
	VCVTPH2PS 48(P), Y11 \
	SINK(0, Y8, LO) \
	SINK(32, Y9, HI) \
	SINK(64, Y10, LO) \
	SINK(96, Y11, HI)

#define UNIT_BF16(P, SINK, LO, HI) \
	VPMOVZXWD (P), Y8 \
	VPMOVZXWD 16(P), Y9 \
	VPMOVZXWD 32(P), Y10 \
	VPMOVZXWD 48(P), Y11 \
	VPSLLD $16, Y8, Y8 \
	VPSLLD $16, Y9, Y9 \
	VPSLLD $16, Y10, Y10 \
	VPSLLD $16, Y11, Y11 \
	SINK(0, Y8, LO) \
	SINK(32, Y9, HI) \
	SINK(64, Y10, LO) \
	SINK(96, Y11, HI)

#define UNIT_Q8_0(P, SINK, LO, HI) \
	MOVWLZX (P), AX \
	VMOVD AX, X12 \
	VCVTPH2PS X12, X12 \
	VBROADCASTSS X12, Y12 \
	VPMOVSXBD 2(P), Y8 \
	VPMOVSXBD 10(P), Y9 \
	VPMOVSXBD 18(P), Y10 \
	VPMOVSXBD 26(P), Y11 \
	VCVTDQ2PS Y8, Y8 \
	VCVTDQ2PS Y9, Y9 \
	VCVTDQ2PS Y10, Y10 \
	VCVTDQ2PS Y11, Y11 \
	VMULPS Y12, Y8, Y8 \
	VMULPS Y12, Y9, Y9 \
	VMULPS Y12, Y10, Y10 \
	VMULPS Y12, Y11, Y11 \
	SINK(0, Y8, LO) \
	SINK(32, Y9, HI) \
	SINK(64, Y10, LO) \
	SINK(96, Y11, HI)

// NIBBLES spreads the 16 bytes at P: the low nibbles to Y8 and Y9, the high ones to Y10 and Y11.
#define NIBBLES(P) \
	VPMOVZXBD P, Y8 \
	VPMOVZXBD 8+P, Y9 \
	VPSRLD $4, Y8, Y10 \
	VPSRLD $4, Y9, Y11 \
	VPAND Y15, Y8, Y8 \
	VPAND Y15, Y9, Y9

#define UNIT_Q4_0(P, SINK, LO, HI) \
	MOVWLZX (P), AX \
	VMOVD AX, X12 \
	VCVTPH2PS X12, X12 \
	VBROADCASTSS X12, Y12 \
	NIBBLES(2(P)) \
	VPSUBD Y14, Y8, Y8 \
	VPSUBD Y14, Y9, Y9 \
	VPSUBD Y14, Y10, Y10 \
	VPSUBD Y14, Y11, Y11 \
	VCVTDQ2PS Y8, Y8 \
	VCVTDQ2PS Y9, Y9 \
	VCVTDQ2PS Y10, Y10 \
	VCVTDQ2PS Y11, Y11 \
	VMULPS Y12, Y8, Y8 \
	VMULPS Y12, Y9, Y9 \
	VMULPS Y12, Y10, Y10 \
	VMULPS Y12, Y11, Y11 \
	SINK(0, Y8, LO) \
	SINK(32, Y9, HI) \
	SINK(64, Y10, LO) \
	SINK(96, Y11, HI)

#define UNIT_Q4_1(P, SINK, LO, HI) \
	VMOVD (P), X12 \
	VCVTPH2PS X12, X12 \
	VMOVSHDUP X12, X13 \
	VBROADCASTSS X12, Y12 \
	VBROADCASTSS X13, Y13 \
	NIBBLES(4(P)) \
	VCVTDQ2PS Y8, Y8 \
	VCVTDQ2PS Y9, Y9 \
	VCVTDQ2PS Y10, Y10 \
	VCVTDQ2PS Y11, Y11 \
	VMULPS Y12, Y8, Y8 \
	VMULPS Y12, Y9, Y9 \
	VMULPS Y12, Y10, Y10 \
	VMULPS Y12, Y11, Y11 \
	VADDPS Y13, Y8, Y8 \
	VADDPS Y13, Y9, Y9 \
	VADDPS Y13, Y10, Y10 \
	VADDPS Y13, Y11, Y11 \
	SINK(0, Y8, LO) \
	SINK(32, Y9, HI) \
	SINK(64, Y10, LO) \
	SINK(96, Y11, HI)

#define NIBBLE_CONSTANTS \
	MOVL $15, AX \
	VMOVD AX, X15 \
	VPBROADCASTD X15, Y15 \
	MOVL $8, AX \
	VMOVD AX, X14 \
	VPBROADCASTD X14, Y14

// DECODE writes the row of units at SI as float32 to DI.
#define DECODE(UNIT, BYTES) \
	MOVQ dst+0(FP), DI \
	MOVQ src+8(FP), R8 \
	MOVQ units+16(FP), CX \
loop: \
	UNIT(R8, STORE, Y0, Y1) \
	ADDQ $BYTES, R8 \
	ADDQ $128, DI \
	DECQ CX \
	JNZ  loop \
	VZEROUPPER \
	RET

// VECMAT writes the dot products of x with four stored rows to y. It prefetches as the one of avx512_amd64.h.
#define VECMAT(UNIT, BYTES) \
	MOVQ y+0(FP), DI \
	MOVQ x+8(FP), SI \
	MOVQ w0+16(FP), R8 \
	MOVQ w1+24(FP), R9 \
	MOVQ w2+32(FP), R10 \
	MOVQ w3+40(FP), R11 \
	MOVQ units+48(FP), CX \
	LEAQ (R11)(R11*2), R12 \
	SUBQ R8, R12 \
	SUBQ R10, R12 \
	CLEAR4(Y0, Y1, Y2, Y3) \
	CLEAR4(Y4, Y5, Y6, Y7) \
loop: \
	PREFETCHT0 (R12) \
	PREFETCHT0 64(R12) \
	UNIT(R8, MULTIPLY, Y0, Y4) \
	UNIT(R9, MULTIPLY, Y1, Y5) \
	UNIT(R10, MULTIPLY, Y2, Y6) \
	UNIT(R11, MULTIPLY, Y3, Y7) \
	ADDQ $128, SI \
	ADDQ $(4*BYTES), R12 \
	ADDQ $BYTES, R8 \
	ADDQ $BYTES, R9 \
	ADDQ $BYTES, R10 \
	ADDQ $BYTES, R11 \
	DECQ CX \
	JNZ  loop \
	VADDPS Y4, Y0, Y0 \
	VADDPS Y5, Y1, Y1 \
	VADDPS Y6, Y2, Y2 \
	VADDPS Y7, Y3, Y3 \
	SUM4(Y0, X0, Y1, X1, Y2, Y3) \
	VMOVUPS X0, (DI) \
	VZEROUPPER \
	RET

// EXP replaces R by its exponential, the argument clamped to -86..88 (a NaN stays one); see exp32 for the polynomial. R8
// points to expVectors. It spoils T and U.
#define EXP(R, T, U) \
	VMOVUPS (R8), T \
	VMAXPS R, T, R \
	VMOVUPS 32(R8), T \
	VMINPS R, T, R \
	VMOVUPS 96(R8), T \
	VFMADD231PS 64(R8), R, T \
	VSUBPS 96(R8), T, U \
	VFMADD231PS 128(R8), U, R \
	VFMADD231PS 160(R8), U, R \
	VPSLLD $23, T, T \
	VMOVUPS 192(R8), U \
	VFMADD213PS 224(R8), R, U \
	VFMADD213PS 256(R8), R, U \
	VFMADD213PS 288(R8), R, U \
	VFMADD213PS 320(R8), R, U \
	VFMADD213PS 352(R8), R, U \
	VMULPS R, U, U \
	VFMADD213PS R, R, U \
	VADDPS 384(R8), U, U \
	VPADDD T, U, R
