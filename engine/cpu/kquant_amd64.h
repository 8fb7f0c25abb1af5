// Macros of kquant_amd64.s.

#define SPLAT(VALUE, X, Y) \
	MOVL $VALUE, AX \
	VMOVD AX, X \
	VPBROADCASTD X, Y

// SCALES4 unpacks a Q4_K or Q5_K block's eight scales, times d, to 0(SP), and its minima, times dmin, to 32(SP). The 12 packed
// bytes at 4(SI) hold 6 bits each: see scaleMin in package weights.
#define SCALES4 \
	VMOVD (SI), X12 \
	VCVTPH2PS X12, X12 \
	VMOVSHDUP X12, X13 \
	VBROADCASTSS X12, Y12 \
	VBROADCASTSS X13, Y13 \
	MOVL 4(SI), R8 \
	MOVL 8(SI), R9 \
	MOVL 12(SI), R10 \
	MOVL R10, R11 \
	SHRL $4, R11 \
	ANDL $0x0F0F0F0F, R10 \
	ANDL $0x0F0F0F0F, R11 \
	MOVL R8, R12 \
	MOVL R9, R13 \
	SHRL $2, R12 \
	SHRL $2, R13 \
	ANDL $0x30303030, R12 \
	ANDL $0x30303030, R13 \
	ANDL $0x3F3F3F3F, R8 \
	ANDL $0x3F3F3F3F, R9 \
	ORL R12, R10 \
	ORL R13, R11 \
	SHLQ $32, R10 \
	SHLQ $32, R11 \
	ORQ R10, R8 \
	ORQ R11, R9 \
	VMOVQ R8, X0 \
	VMOVQ R9, X1 \
	VPMOVZXBD X0, Y0 \
	VPMOVZXBD X1, Y1 \
	VCVTDQ2PS Y0, Y0 \
	VCVTDQ2PS Y1, Y1 \
	VMULPS Y12, Y0, Y0 \
	VMULPS Y13, Y1, Y1 \
	VMOVUPS Y0, (SP) \
	VMOVUPS Y1, 32(SP)

// PAIR_SCALES loads the scales and minima of sub-blocks 2*I and 2*I+1.
#define PAIR_SCALES(I) \
	VBROADCASTSS (8*I)(SP), Y0 \
	VBROADCASTSS (8*I+4)(SP), Y1 \
	VBROADCASTSS (32+8*I)(SP), Y2 \
	VBROADCASTSS (36+8*I)(SP), Y3

// PAIR_STORE turns the quants in Y5 and Y4 to elements of the pair's first and second sub-block.
#define PAIR_STORE(I, C) \
	VCVTDQ2PS Y5, Y5 \
	VCVTDQ2PS Y4, Y4 \
	VMULPS Y0, Y5, Y5 \
	VMULPS Y1, Y4, Y4 \
	VSUBPS Y2, Y5, Y5 \
	VSUBPS Y3, Y4, Y4 \
	VMOVUPS Y5, (256*I+32*C)(DI) \
	VMOVUPS Y4, (256*I+128+32*C)(DI)

#define Q4_EIGHT(I, C) \
	VPMOVZXBD (16+32*I+8*C)(SI), Y4 \
	VPAND Y15, Y4, Y5 \
	VPSRLD $4, Y4, Y4 \
	PAIR_STORE(I, C)

#define Q4_PAIR(I) \
	PAIR_SCALES(I) \
	Q4_EIGHT(I, 0) \
	Q4_EIGHT(I, 1) \
	Q4_EIGHT(I, 2) \
	Q4_EIGHT(I, 3)

// SHIFT1 and SHIFT2 bring the fifth bits of the pair's sub-blocks to bit 4.
#define Q5_EIGHT(I, C, SHIFT1, N1, SHIFT2, N2) \
	VPMOVZXBD (48+32*I+8*C)(SI), Y4 \
	VPMOVZXBD (16+8*C)(SI), Y6 \
	VPAND Y15, Y4, Y5 \
	VPSRLD $4, Y4, Y4 \
	SHIFT1 $N1, Y6, Y7 \
	SHIFT2 $N2, Y6, Y6 \
	VPAND Y14, Y7, Y7 \
	VPAND Y14, Y6, Y6 \
	VPOR Y7, Y5, Y5 \
	VPOR Y6, Y4, Y4 \
	PAIR_STORE(I, C)

#define Q5_PAIR(I, SHIFT1, N1, SHIFT2, N2) \
	PAIR_SCALES(I) \
	Q5_EIGHT(I, 0, SHIFT1, N1, SHIFT2, N2) \
	Q5_EIGHT(I, 1, SHIFT1, N1, SHIFT2, N2) \
	Q5_EIGHT(I, 2, SHIFT1, N1, SHIFT2, N2) \
	Q5_EIGHT(I, 3, SHIFT1, N1, SHIFT2, N2)

// Q6_STORE turns the low bits in LOW and the high ones in HIGH (bits 4 and 5) to eight elements of quarter R.
#define Q6_STORE(LOW, HIGH, H, R, C) \
	VPOR HIGH, LOW, LOW \
	VPSUBD Y13, LOW, LOW \
	VCVTDQ2PS LOW, LOW \
	VBROADCASTSS (32*H+8*R+4*(C/2))(SP), HIGH \
	VMULPS HIGH, LOW, LOW \
	VMOVUPS LOW, (512*H+128*R+32*C)(DI)

#define Q6_EIGHT(H, C) \
	VPMOVZXBD (64*H+8*C)(SI), Y0 \
	VPMOVZXBD (64*H+32+8*C)(SI), Y1 \
	VPMOVZXBD (128+32*H+8*C)(SI), Y4 \
	VPSRLD $4, Y0, Y2 \
	VPSRLD $4, Y1, Y3 \
	VPAND Y15, Y0, Y0 \
	VPAND Y15, Y1, Y1 \
	VPSLLD $4, Y4, Y5 \
	VPSLLD $2, Y4, Y6 \
	VPSRLD $2, Y4, Y7 \
	VPAND Y14, Y4, Y4 \
	VPAND Y14, Y5, Y5 \
	VPAND Y14, Y6, Y6 \
	VPAND Y14, Y7, Y7 \
	Q6_STORE(Y0, Y5, H, 0, C) \
	Q6_STORE(Y1, Y6, H, 1, C) \
	Q6_STORE(Y2, Y4, H, 2, C) \
	Q6_STORE(Y3, Y7, H, 3, C)

#define Q6_HALF(H) \
	Q6_EIGHT(H, 0) \
	Q6_EIGHT(H, 1) \
	Q6_EIGHT(H, 2) \
	Q6_EIGHT(H, 3)
