//go:build amd64 && !purego

// Decoders of the formats with blocks of 256 for AVX2, bit for bit those of package weights.

#include "textflag.h"
#include "kquant_amd64.h"

// func decodeQ4_K(dst *float32, src *byte, blocks int)
TEXT ·decodeQ4_K(SB), NOSPLIT, $64-24
	MOVQ dst+0(FP), DI
	MOVQ src+8(FP), SI
	MOVQ blocks+16(FP), CX
	SPLAT(15, X15, Y15)

q4Loop:
	SCALES4
	Q4_PAIR(0)
	Q4_PAIR(1)
	Q4_PAIR(2)
	Q4_PAIR(3)
	ADDQ $144, SI
	ADDQ $1024, DI
	DECQ CX
	JNZ  q4Loop
	VZEROUPPER
	RET

// func decodeQ5_K(dst *float32, src *byte, blocks int)
TEXT ·decodeQ5_K(SB), NOSPLIT, $64-24
	MOVQ dst+0(FP), DI
	MOVQ src+8(FP), SI
	MOVQ blocks+16(FP), CX
	SPLAT(15, X15, Y15)
	SPLAT(16, X14, Y14)

q5Loop:
	SCALES4
	Q5_PAIR(0, VPSLLD, 4, VPSLLD, 3)
	Q5_PAIR(1, VPSLLD, 2, VPSLLD, 1)
	Q5_PAIR(2, VPSLLD, 0, VPSRLD, 1)
	Q5_PAIR(3, VPSRLD, 2, VPSRLD, 3)
	ADDQ $176, SI
	ADDQ $1024, DI
	DECQ CX
	JNZ  q5Loop
	VZEROUPPER
	RET

// func decodeQ6_K(dst *float32, src *byte, blocks int)
TEXT ·decodeQ6_K(SB), NOSPLIT, $64-24
	MOVQ dst+0(FP), DI
	MOVQ src+8(FP), SI
	MOVQ blocks+16(FP), CX
	SPLAT(15, X15, Y15)
	SPLAT(0x30, X14, Y14)
	SPLAT(32, X13, Y13)

q6Loop:
	MOVWLZX 208(SI), AX
	VMOVD AX, X12
	VCVTPH2PS X12, X12
	VBROADCASTSS X12, Y12
	VPMOVSXBD 192(SI), Y0
	VPMOVSXBD 200(SI), Y1
	VCVTDQ2PS Y0, Y0
	VCVTDQ2PS Y1, Y1
	VMULPS Y12, Y0, Y0
	VMULPS Y12, Y1, Y1
	VMOVUPS Y0, (SP)
	VMOVUPS Y1, 32(SP)
	Q6_HALF(0)
	Q6_HALF(1)
	ADDQ $210, SI
	ADDQ $1024, DI
	DECQ CX
	JNZ  q6Loop
	VZEROUPPER
	RET
