// Macros of avx512_amd64.s.

// SUM4 adds the 16 lanes of each of Z0..Z3 in the package's order and leaves the four sums in X0. It spoils Y20..Y23.
#define SUM4(Z0, Y0, X0, Z1, Y1, X1, Z2, Y2, Z3, Y3) \
	VEXTRACTF64X4 $1, Z0, Y20 \
	VEXTRACTF64X4 $1, Z1, Y21 \
	VEXTRACTF64X4 $1, Z2, Y22 \
	VEXTRACTF64X4 $1, Z3, Y23 \
	VADDPS Y20, Y0, Y0 \
	VADDPS Y21, Y1, Y1 \
	VADDPS Y22, Y2, Y2 \
	VADDPS Y23, Y3, Y3 \
	VHADDPS Y1, Y0, Y0 \
	VHADDPS Y3, Y2, Y2 \
	VHADDPS Y2, Y0, Y0 \
	VEXTRACTF128 $1, Y0, X1 \
	VADDPS X1, X0, X0

#define CLEAR4(Z0, Z1, Z2, Z3) \
	VPXORD Z0, Z0, Z0 \
	VPXORD Z1, Z1, Z1 \
	VPXORD Z2, Z2, Z2 \
	VPXORD Z3, Z3, Z3

#define UNIT_F32(P, LO, HI) \
	VMOVUPS (P), LO \
	VMOVUPS 64(P), HI

#define UNIT_F16(P, LO, HI) \
	VCVTPH2PS (P), LO \
	VCVTPH2PS 32(P), HI

#define UNIT_BF16(P, LO, HI) \
	VPMOVZXWD (P), LO \
	VPMOVZXWD 32(P), HI \
	VPSLLD $16, LO, LO \
	VPSLLD $16, HI, HI

#define UNIT_Q8_0(P, LO, HI) \
	VPBROADCASTW (P), Y24 \
	VPMOVSXBD 2(P), LO \
	VPMOVSXBD 18(P), HI \
	VCVTPH2PS Y24, Z24 \
	VCVTDQ2PS LO, LO \
	VCVTDQ2PS HI, HI \
	VMULPS Z24, LO, LO \
	VMULPS Z24, HI, HI

// The 16 values that a block's nibbles stand for are worked out once; each nibble then picks its own.
#define UNIT_Q4_0(P, LO, HI) \
	VPBROADCASTW (P), Y24 \
	VPMOVZXBD 2(P), Z25 \
	VCVTPH2PS Y24, Z24 \
	VMULPS Z28, Z24, Z24 \
	VPSRLD $4, Z25, Z26 \
	VPERMPS Z24, Z25, LO \
	VPERMPS Z24, Z26, HI

#define UNIT_Q4_1(P, LO, HI) \
	VPBROADCASTD (P), Y24 \
	VPMOVZXBD 4(P), Z25 \
	VCVTPH2PS Y24, Z24 \
	VPSRLD $4, Z25, Z26 \
	VMOVSHDUP Z24, Z27 \
	VMOVSLDUP Z24, Z24 \
	VMULPS Z28, Z24, Z24 \
	VADDPS Z27, Z24, Z24 \
	VPERMPS Z24, Z25, LO \
	VPERMPS Z24, Z26, HI

// ROW_Q4_1 multiplies the unit at P with x in Z4 and Z5; its scale and minimum are at AT(SP).
#define ROW_Q4_1(P, AT, SUM) \
	VPMOVZXBD 4(P), Z25 \
	VMULPS.BCST AT(SP), Z28, Z24 \
	VADDPS.BCST (AT+4)(SP), Z24, Z24 \
	VPSRLD $4, Z25, Z26 \
	VPERMPS Z24, Z25, Z6 \
	VPERMPS Z24, Z26, Z7 \
	VFMADD231PS Z6, Z4, SUM \
	VFMADD231PS Z7, Z5, SUM

// DECODE writes the row of units at SI as float32 to DI.
#define DECODE(UNIT, BYTES) \
	MOVQ dst+0(FP), DI \
	MOVQ src+8(FP), SI \
	MOVQ units+16(FP), CX \
loop: \
	UNIT(SI, Z0, Z1) \
	VMOVUPS Z0, (DI) \
	VMOVUPS Z1, 64(DI) \
	ADDQ $BYTES, SI \
	ADDQ $128, DI \
	DECQ CX \
	JNZ  loop \
	VZEROUPPER \
	RET

// VECMAT writes the dot products of x with four stored rows to y. It fetches the rows that follow, seven ahead, into the cache:
// rows of a few hundred bytes are too short for the processor to see a stream in each (a decode step of the fixture model
// took 16.9 ms without, 10.3 ms with, on one thread of an EPYC of family 25 model 17).
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
	CLEAR4(Z0, Z1, Z2, Z3) \
loop: \
	PREFETCHT0 (R12) \
	PREFETCHT0 64(R12) \
	VMOVUPS (SI), Z4 \
	VMOVUPS 64(SI), Z5 \
	UNIT(R8, Z6, Z7) \
	VFMADD231PS Z6, Z4, Z0 \
	VFMADD231PS Z7, Z5, Z0 \
	UNIT(R9, Z8, Z9) \
	VFMADD231PS Z8, Z4, Z1 \
	VFMADD231PS Z9, Z5, Z1 \
	UNIT(R10, Z10, Z11) \
	VFMADD231PS Z10, Z4, Z2 \
	VFMADD231PS Z11, Z5, Z2 \
	UNIT(R11, Z12, Z13) \
	VFMADD231PS Z12, Z4, Z3 \
	VFMADD231PS Z13, Z5, Z3 \
	ADDQ $128, SI \
	ADDQ $(4*BYTES), R12 \
	ADDQ $BYTES, R8 \
	ADDQ $BYTES, R9 \
	ADDQ $BYTES, R10 \
	ADDQ $BYTES, R11 \
	DECQ CX \
	JNZ  loop \
	SUM4(Z0, Y0, X0, Z1, Y1, X1, Z2, Y2, Z3, Y3) \
	VMOVUPS X0, (DI) \
	VZEROUPPER \
	RET

// EXP replaces X0 by its exponential, the argument clamped to -86..88 (a NaN stays one); see exp32 for the polynomial.
// EXP_CONSTANTS must have run. It spoils Z1 and Z2.
#define EXP_CONSTANTS \
	VBROADCASTSS ·expConstants+0(SB), Z16 \
	VBROADCASTSS ·expConstants+4(SB), Z17 \
	VBROADCASTSS ·expConstants+8(SB), Z18 \
	VBROADCASTSS ·expConstants+12(SB), Z19 \
	VBROADCASTSS ·expConstants+16(SB), Z20 \
	VBROADCASTSS ·expConstants+20(SB), Z21 \
	VBROADCASTSS ·expConstants+24(SB), Z22 \
	VBROADCASTSS ·expConstants+28(SB), Z23 \
	VBROADCASTSS ·expConstants+32(SB), Z24 \
	VBROADCASTSS ·expConstants+36(SB), Z25 \
	VBROADCASTSS ·expConstants+40(SB), Z26 \
	VBROADCASTSS ·expConstants+44(SB), Z27 \
	VBROADCASTSS ·expConstants+48(SB), Z28

#define EXP(X0) \
	VMAXPS X0, Z16, X0 \
	VMINPS X0, Z17, X0 \
	VMOVAPS Z19, Z1 \
	VFMADD231PS Z18, X0, Z1 \
	VSUBPS Z19, Z1, Z2 \
	VFMADD231PS Z20, Z2, X0 \
	VFMADD231PS Z21, Z2, X0 \
	VPSLLD $23, Z1, Z1 \
	VMOVAPS Z22, Z2 \
	VFMADD213PS Z23, X0, Z2 \
	VFMADD213PS Z24, X0, Z2 \
	VFMADD213PS Z25, X0, Z2 \
	VFMADD213PS Z26, X0, Z2 \
	VFMADD213PS Z27, X0, Z2 \
	VMULPS X0, Z2, Z2 \
	VFMADD213PS X0, X0, Z2 \
	VADDPS Z28, Z2, Z2 \
	VPADDD Z1, Z2, X0
