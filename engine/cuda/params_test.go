//go:build cuda

package cuda

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/cuda/driver"
	"github.com/tokamak-engine/tokamak/engine/kernels"
	"github.com/tokamak-engine/tokamak/engine/weights"
)

// TestParamsMirrorKernels has the compiler compare sizes and offsets of every struct that Go fills and a kernel reads. The fields
// are named in order; blank Go fields have none.
func TestParamsMirrorKernels(t *testing.T) {
	nvrtc, err := driver.OpenCompiler()
	if err != nil {
		t.Skipf("no compiler: %v", err)
	}
	d, s := testDevices["sm_90"], testShapes()["llama-8b"]
	b, w, m := &buffers{}, layerWeights{}, testShapes()["qwen3-30b-a3b"]
	for _, c := range []struct {
		op     op // its unit is compiled
		name   string
		mirror any
		fields string
	}{
		{s.qkv(1).op(d, linearParams{}), "Params", linearParams{}, "w x gamma bias y logits x_row slot position slot_param best row_scale tokens"},
		{s.qkv(8).op(d, linearParams{}), "Params", linearParams{}, "w x gamma bias y logits x_row slot position slot_param best row_scale tokens"},
		{attnDecodeOp(d, s, b, w, 0, 1), "Params", attnDecodeParams{}, "qkv kv out qnorm knorm rope row_slot row_ctx row_from page_table part arrived scale to_k to_v of_v prefix_splits"},
		{attnPrefixOp(d, s, b, w, 0, 1), "Params", attnPrefixParams{}, "qkv kv qnorm rope row_slot row_ctx row_from page_table part scale rows places"},
		{attnPrefill90Op(d, s, b, w, 0, 0, 1, 1, false), "Params", attnPrefill90Params{}, "q kv out row_slot row_pos row_len row_start page_table pages widened scale of_v first_row rows q_tiles"},
		{kvWidenOp(d, s, b, 0, 0, 1), "Params", kvWidenParams{}, "kv out first row_slot row_pos row_len page_table first_row"},
		{attnPrefillOp(s, b, w, 0, 0, 1, 1), "Params", attnPrefillParams{}, "qkv kv out row_slot row_pos row_len row_start page_table scale of_v first_row"},
		{advanceOp(d, s, b, 1, 1), "Params", advanceParams{}, "plan step tok_at update_at " +
			"tok_id tok_pos tok_slot row_slot row_pos row_len row_start row_ctx row_from sample_tok sample_slot sample_pos mask_row slot_token page_table tokens rows"},
		{s.qkv(32).call90(d, s.qkv(32).gemmTile(d), 0, 0, gemmParams{}).op(), "Params", gemmParams{}, "w x bias y logits slot position slot_param best gamma scaled squares rms_of tokens parts"},
		{s.gateUp(512).swigluOp(d, 256, 0, 0, 0), "Params", swigluParams{}, "w x y tokens"},
		{embedOp(d, s, b, 1), "Params", embedParams{}, "tok_id embed x"},
		{draftCaptureOp(s, b, 0, 0, 1, 1), "Params", draftCaptureParams{}, "x aux step part rows"},
		{draftGatherOp(0, 0, 0, 1, s.Hidden), "Params", draftGatherParams{}, "x y index"},
		{draftPairOp(s, draftPairParams{}, 1), "Params", draftPairParams{}, "tok_id embed gamma_token gamma_hidden hidden index x pairs"},
		{rmsnormOp(d, s, b, 0, 1), "Params", rmsnormParams{}, "x gamma y rows"},
		{ropeKVOp(d, s, b, w, 0, 0, 1), "Params", ropeKVParams{}, "qkv kv qnorm knorm rope tok_pos tok_slot page_table first to_k to_v"},
		{siluMulOp(d, s, b, 1), "Params", siluMulParams{}, "gu act"},
		{(&fp8Call{linear: s.qkv(32), tile: s.qkv(32).fp8Tile(d)}).op(d), "Params", gemmFP8Params{}, "w x row_scale bias y gamma scaled squares rms_of tokens parts stage_bytes"},
		{fp8QuantizeOp(b, quantizePlain, 0, 0, 1, s.Hidden), "Params", fp8QuantizeParams{}, "x gamma y scale"},
		{fp8DequantOp(d, weight{}, 64, 64, 0), "Params", fp8DequantParams{}, "w scale out"},
		{fp8FillOp(d, fp8FillParams{}, &weights.Tensor{Shape: []int{8, 16}}), "FP8FillParams", fp8FillParams{}, "dst count row seed step inverse constant interleave"},
		{sampleFastOp(d, s, b, 1), "Params", sampleFastParams{}, "best sample_slot slot_token ring rows ctas"},
		{sampleFastOp(d, s, b, 1), "Ring", ringParams{}, "entries size step"},
		{sampleFastOp(d, s, b, 1), "Sampled", sampled{}, "token logprob flags"},
		{sampleOp(d, s, b, 1), "Params", sampleParams{}, "logits sample_slot sample_pos mask_row mask slot_param counts bias sampled top"},
		{publishOp(d, s, b, 1), "Params", publishParams{}, "sampled top sample_slot slot_param slot_token ring rows"},
		{targetLogprobOp(d, s, b, 0, 1), "Params", targetLogprobParams{}, "logits target out"},
		{startOp(d, s, b, 1), "Params", startParams{}, "starts step bias_at token_at slot_param bias counts slot_token"},
		{startOp(d, s, b, 1), "StartEntry", startEntry{}, "params slot token bias_first prompt_first prompt output_first output"},
		{startOp(d, s, b, 1), "SlotParams", slotParams{}, "seed temperature top_p min_p repetition presence frequency top_k num_bias flags top_logprobs"},
		{moeRouterOp(m, b, w, 1, 1), "Params", moeRouterParams{}, "x gamma w xn logits tokens"},
		{moeGateUpOp(d, m, b, w, 1), "Params", moeGateUpParams{}, "w xn act tokens"},
		{moeGateUpOp(d, m, b, w, 1), "Tokens", moeTokens{}, "logits slot position count layer"},
		{moeDownOp(d, m, b, w, 1), "Params", moeDownParams{}, "w act x tokens"},
		{moeTopKOp(m, b, w, 64), "Params", moeTopKParams{}, "logits tok_slot tok_pos expert weight pair tokens layer"},
		{moeSortOp(m, b, 64), "Params", moeSortParams{}, "expert pair count first xn xp entries"},
		{moePermuteOp(m, b, 64), "Params", moePermuteParams{}, "xn pair xp"},
		{moeCombineOp(m, b, 64), "Params", moeCombineParams{}, "y pair weight x"},
		{moeGEMMDownOp(d, m, b, w, 64, m.moeTile(64)), "Params", moeGEMMParams{}, "w x y count first"},
		{fillOp(d, 0, &weights.Tensor{Shape: []int{8, 8}, Dummy: &weights.Dummy{}}, rowsInOrder), "FillParams", fillParams{}, "dst count cols seed step constant interleave mask fp8_scale"},
		{fillInt4Op(d, 0, &weights.Tensor{Shape: []int{8, 8}, Dummy: &weights.Dummy{}}, rowsInOrder), "W4FillParams", w4FillParams{}, "dst count block seed constant interleave"},
		{product{linear: s.qkv(1), w: weight{Group: 128}}.w4GemvOp(d, w4GemvTile{ring: 2}), "Params", w4GemvParams{}, "w scale x gamma bias y next tokens next_bytes"},
		{product{linear: s.qkv(32), w: weight{Group: 128}}.w4GEMM90Call(d, w4GEMM90Tile{groups: 1, split: 1, tokens: 32, stages: 4}).op(), "Params", w4GEMM90Params{},
			"w scale x bias y gamma scaled squares rms_of tokens parts"},
		{product{linear: s.qkv(32), w: weight{Group: 128}}.w4GEMMOp(d, b), "Params", w4GEMMParams{}, "w scale x bias y part arrived tokens"},
		{dequantOp(d, weight{Group: 128}, 8, 128, 0), "Params", w4DequantParams{}, "w scale out"},
		{ropeTableOp(d, s, 0, 0, 1), "RopeTableParams", ropeTableParams{}, "out inv_freq count factor"},
		{readProbeOp(d, 0, 0, 1<<20, 0), "ReadProbeParams", readProbeParams{}, "src count sink"},
		{flopProbeOp(d, 0, 1, true), "FlopProbeParams", flopProbeParams{}, "sink steps pad"},
	} {
		t.Run(c.op.Unit.Symbol+"/"+c.name, func(t *testing.T) {
			source, err := kernels.Source(c.op.Unit.File)
			require.NoError(t, err)
			var check strings.Builder
			mirror := reflect.TypeOf(c.mirror)
			// NVRTC has no offsetof. Sizes, alignments and the order of the fields fix the offsets as well.
			fmt.Fprintf(&check, "\nstatic_assert(sizeof(%s) == %d, \"size\");\n__device__ constexpr %s probe{};\n", c.name, mirror.Size(), c.name)
			names, before, end := strings.Fields(c.fields), "", uintptr(0)
			for i := range mirror.NumField() {
				f := mirror.Field(i)
				end = (end + uintptr(f.Type.Align()) - 1) &^ (uintptr(f.Type.Align()) - 1)
				require.Equal(t, f.Offset, end)
				end += f.Type.Size()
				if f.Name == "_" {
					continue
				}
				require.NotEmpty(t, names, "%s.%s", c.name, f.Name)
				align := f.Type.Align()
				if f.Type == reflect.TypeFor[driver.TensorMap]() { // bytes to Go
					align = 128
					require.Zero(t, f.Offset%128)
				}
				fmt.Fprintf(&check, "static_assert(sizeof(probe.%s) == %d && alignof(decltype(probe.%s)) == %d, %q);\n",
					names[0], f.Type.Size(), names[0], align, names[0]+" is not "+f.Name)
				if before != "" {
					fmt.Fprintf(&check, "static_assert((const void*)&probe.%s < (const void*)&probe.%s, %q);\n", before, names[0], before+" before "+names[0])
				}
				before, names = names[0], names[1:]
			}
			require.Empty(t, names)
			compiler := newCompiler(d, s, nil)
			_, log, err := nvrtc.Compile(c.op.Unit.File, source+check.String(), compiler.headers, compiler.options(c.op.Unit))
			require.NoError(t, err, log)
		})
	}
}
