package grammar

import (
	"encoding/json"
	"fmt"
	"math/rand"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const person = `{"type":"object","properties":{"name":{"type":"string"},"age":{"type":"integer","minimum":0,"maximum":150},
	"email":{"type":"string","format":"email"},"tags":{"type":"array","items":{"type":"string","maxLength":8},"maxItems":3}},"required":["name","age"]}`

const tree = `{"$defs":{"node":{"type":"object","properties":{"value":{"type":"number"},"children":{"type":"array","items":{"$ref":"#/$defs/node"}}},
	"required":["value"]}},"$ref":"#/$defs/node"}`

// schemaCases are schemas with texts that they allow and texts that they do not.
var schemaCases = []struct {
	name, schema string
	yes, no      []string
}{
	{"anything", `{}`, []string{`{"a": [1, 2.5e-3, "x\n\u00e9\ud83d\ude00", null, true, {}, []]}`, `"é"`, `-0.5`, "[\n  1,\n  2\n]", `{"a":{"b":{"c":[[[]]]}}}`},
		[]string{`{"a":}`, `[1,]`, `01`, `"\ud83d"`, "\"\n\"", `nul`, `{a:1}`, ` 1`, `1 `, `[1  ]`, `.5`, `1e`, `"\x"`, "\"\xff\"", `tru`}},
	{"true", `true`, []string{`1`}, []string{``}},
	{"person", person, []string{`{"name":"Ann","age":30}`, `{"name": "Ann", "age": 0, "email": "a@b.co", "tags": ["x", "12345678"]}`, `{"name":"","age":150,"tags":[]}`},
		[]string{`{"age":3}`, `{"name":"Ann"}`, `{"name":"A","age":151}`, `{"name":"A","age":-1}`, `{"name":"A","age":1,"x":2}`, `{"age":1,"name":"A"}`,
			`{"name":"A","age":1,"tags":["123456789"]}`, `{"name":"A","age":1,"tags":["","","",""]}`, `{"name":"A","age":1,"email":"x"}`, `{"name":"A","age":1,}`}},
	{"all optional", `{"properties":{"a":{"type":"null"},"b":{"type":"boolean"},"c":{"type":"integer"}}}`, []string{`{}`, `{"a":null}`, `{"b":true,"c":-3}`,
		`{"c":0}`, `{"a":null,"b":false,"c":1}`}, []string{`{"b":true,"a":null}`, `{,}`, `{"a":null,}`, `{"a":null "b":true}`, `{"a":null,"a":null}`}},
	{"tree", tree, []string{`{"value":1,"children":[{"value":2.5},{"value":3,"children":[{"value":-4e2,"children":[]}]}]}`}, []string{`{"children":[]}`, `{"value":1,"children":[1]}`}},
	{"extra", `{"properties":{"ab":{"type":"integer"},"ac":{"type":"integer"}},"required":["ac"],"additionalProperties":{"type":"boolean"}}`,
		[]string{`{"ac":1}`, `{"ab":1,"ac":2,"a":true,"abc":false,"":true,"é\"":true}`}, []string{`{"ac":1,"ab":true}`, `{"ac":1,"x":1}`, `{"ac":1,"ac":true}`, `{"a":true}`}},
	{"map", `{"type":"object","additionalProperties":{"type":"array","items":{"enum":["x","y"]}}}`, []string{`{}`, `{"k":[],"l":["x", "y"]}`}, []string{`{"k":1}`, `[]`}},
	{"closed", `{"type":"object","additionalProperties":false}`, []string{`{}`}, []string{`{"a":1}`}},
	{"required only", `{"required":["b","a"]}`, []string{`{"b":1,"a":[]}`}, []string{`{"a":1}`, `{}`}},
	{"enum", `{"enum":["a\"b",1,null,{"k":[1,"é"]},true]}`, []string{`"a\"b"`, `1`, `null`, `{"k":[1,"é"]}`, `true`}, []string{`"a"`, `2`, `false`, `{}`}},
	{"typed enum", `{"type":"string","enum":["a",1]}`, []string{`"a"`}, []string{`1`}},
	{"const", `{"const":{"a":1}}`, []string{`{"a":1}`}, []string{`{}`}},
	{"types", `{"type":["string","null"],"maxLength":2}`, []string{`"ab"`, `null`, `""`, `"é\n"`}, []string{`"abc"`, `1`}},
	{"lengths", `{"type":"string","minLength":2,"maxLength":3}`, []string{`"ab"`, `"中文字"`, `"\"\\"`, `"😀a"`}, []string{`"a"`, `"abcd"`, `""`}},
	{"pattern", `{"type":"string","pattern":"^[A-Z]{2}-[0-9]+$"}`, []string{`"AB-1"`, `"ZZ-0099"`}, []string{`"AB-"`, `"xAB-1"`, `"AB-1 "`}},
	{"pattern anywhere", `{"type":"string","pattern":"b+|^c"}`, []string{`"b"`, `"abba\n"`, `"c"`, `"cab"`}, []string{`"a"`, `"ac"`, `""`}},
	{"pattern escapes", `{"type":"string","pattern":"^[\"\\\\\\n\\x01/]*$"}`, []string{`"\"\\\n\u0001/"`, `""`}, []string{`"a"`, `"\/"`}},
	{"pattern length", `{"type":"string","pattern":"^[a-c]+$","maxLength":3}`, []string{`"a"`, `"abc"`}, []string{`""`, `"abca"`, `"d"`}},
	{"pattern fold", `{"type":"string","pattern":"^(?i)ok$"}`, []string{`"ok"`, `"OK"`, `"oK"`, `"oK"`}, []string{`"o"`}},
	{"date", `{"type":"string","format":"date"}`, []string{`"2024-02-28"`, `"1999-12-31"`}, []string{`"2024-13-01"`, `"2024-04-31"`, `"24-1-1"`}},
	{"date-time", `{"format":"date-time"}`, []string{`"2024-02-28T23:59:59Z"`, `"2024-02-28T00:00:00.5+05:30"`}, []string{`"2024-02-28"`, `"2024-02-28T24:00:00Z"`}},
	{"uuid", `{"format":"uuid"}`, []string{`"123e4567-e89b-12d3-a456-426614174000"`}, []string{`"123e4567"`}},
	{"ipv4", `{"format":"ipv4"}`, []string{`"0.0.0.0"`, `"255.249.99.1"`}, []string{`"256.1.1.1"`, `"1.1.1"`, `"01.1.1.1"`}},
	{"other format", `{"type":"string","format":"iri"}`, []string{`"x"`}, []string{`1`}},
	{"integer", `{"type":"integer"}`, []string{`0`, `-12`, `999999999999999999`}, []string{`1.0`, `1e3`, `00`, `-`, `+1`, `1000000000000000000`}},
	{"number", `{"type":"number"}`, []string{`0.001`, `-12e+10`, `1E5`}, []string{`1.`, `1e100`, `.1`}},
	{"range", `{"type":"integer","minimum":-105,"exclusiveMaximum":37}`, []string{`-105`, `-99`, `-10`, `-1`, `0`, `9`, `10`, `36`}, []string{`-106`, `37`, `100`, `-1000`, `-0`, `1.5`}},
	{"positive", `{"type":"integer","exclusiveMinimum":0}`, []string{`1`, `10`, `123456`}, []string{`0`, `-1`}},
	{"negative", `{"type":"integer","maximum":-1}`, []string{`-1`, `-99`}, []string{`0`, `1`, `-0`}},
	{"share", `{"type":"number","minimum":0,"maximum":1}`, []string{`0`, `1`, `0.5`, `0.999`, `1.0`, `0.0`}[:4], []string{`1.1`, `-0.1`, `2`, `1.01`, `.5`, `00.5`}},
	{"decimals", `{"type":"number","minimum":-1.25,"exclusiveMaximum":0.3}`, []string{`-1.25`, `-1.2`, `-1.2499`, `-1`, `-0.5`, `0`, `0.2`, `0.29`, `0.29999`, `0.05`}, []string{`-1.26`, `-1.250001`, `0.3`, `0.30`, `0.31`, `1`, `-2`}},
	{"array", `{"type":"array","items":{"type":"integer"},"minItems":2,"maxItems":4}`, []string{`[1,2]`, `[1, 2,3,4]`, "[\n\t1,\n\t2\n]"}, []string{`[1]`, `[]`, `[1,2,3,4,5]`, `[1,"x"]`}},
	{"at least", `{"type":"array","items":{"type":"boolean"},"minItems":3}`, []string{`[true,true,true]`, `[true,true,true,false,true]`}, []string{`[true,true]`, `[]`}},
	{"tuple", `{"prefixItems":[{"type":"string"},{"type":"integer"}],"minItems":1}`, []string{`["a"]`, `["a",1]`}, []string{`[]`, `["a",1,2]`, `[1]`}},
	{"tuple and more", `{"prefixItems":[{"type":"string"}],"items":{"type":"null"}}`, []string{`[]`, `["a",null,null]`}, []string{`[null]`, `["a","b"]`}},
	{"no items", `{"type":"array","items":false}`, []string{`[]`}, []string{`[1]`}},
	{"anyOf", `{"anyOf":[{"type":"object","properties":{"kind":{"const":"cat"},"lives":{"type":"integer"}},"required":["kind","lives"]},
		{"type":"object","properties":{"kind":{"const":"cow"},"milk":{"type":"boolean"}},"required":["kind"]}]}`,
		[]string{`{"kind":"cat","lives":9}`, `{"kind":"cow"}`, `{"kind":"cow","milk":true}`}, []string{`{"kind":"cat","milk":true}`, `{"kind":"cat"}`, `{"kind":"dog"}`}},
	{"anyOf beside", `{"type":"object","properties":{"a":{"type":"integer"}},"required":["a"],"anyOf":[{"properties":{"b":{"type":"null"}},"required":["b"]},{"required":["a"]}]}`,
		[]string{`{"a":1,"b":null}`, `{"a":1}`}, []string{`{"b":null}`}},
	{"allOf", `{"allOf":[{"$ref":"#/$defs/base"},{"properties":{"b":{"type":"string"}},"required":["b"]},{"properties":{"a":{"maximum":5}}}],
		"$defs":{"base":{"type":"object","properties":{"a":{"type":"integer","minimum":1}},"required":["a"]}}}`,
		[]string{`{"a":5,"b":"x"}`}, []string{`{"a":5}`, `{"a":6,"b":"x"}`, `{"a":0,"b":"x"}`}},
	{"optional ref", `{"properties":{"next":{"anyOf":[{"$ref":"#"},{"type":"null"}]}},"required":["next"]}`, []string{`{"next":null}`, `{"next":{"next":{"next":null}}}`}, []string{`{}`, `null`}},
	{"ref into list", `{"anyOf":[{"type":"null"},{"type":"array","items":{"$ref":"#/anyOf/0"}}]}`, []string{`null`, `[null,null]`}, []string{`[[]]`}},
	{"odd names", `{"properties":{"a/b~c \"d\"":{"type":"null"}},"required":["a/b~c \"d\""],"$defs":{"x/y":{}}}`, []string{`{"a/b~c \"d\"":null}`}, []string{`{}`}},
}

// feed follows text byte by byte; it tells if all of it is allowed and complete.
func feed(g *Grammar, text string) bool {
	var c configs
	g.machine.enter(&c, g.machine.starts[0], nil)
	for i := range len(text) {
		if c = g.machine.advance(c, text[i]); c.dead() {
			return false
		}
	}
	return c.finished
}

func TestSchemas(t *testing.T) {
	v := smallVocabulary(t)
	for _, test := range schemaCases {
		t.Run(test.name, func(t *testing.T) {
			g, err := Compile(Spec{JSONSchema: test.schema}, v)
			require.NoError(t, err)
			var root any
			root, err = decode([]byte(test.schema))
			require.NoError(t, err)
			for _, text := range test.yes {
				assert.True(t, feed(g, text), "%s should be allowed", text)
				value, err := decode([]byte(text))
				require.NoError(t, err, text)
				assert.Empty(t, check(root, root, value), "the checker refuses %s", text)
			}
			for _, text := range test.no {
				assert.False(t, feed(g, text), "%s should not be allowed", text)
			}
			walk(t, g, func(out []byte) string {
				value, err := decode(out)
				if err != nil {
					return err.Error()
				}
				return check(root, root, value)
			})
		})
	}
}

var regexCases = []struct {
	pattern string
	yes, no []string
}{
	{`[a-z]+@[a-z]+\.com`, []string{"a@b.com"}, []string{"a@b.co", "A@b.com", "xa@b.com "}},
	{`^(yes|no|maybe)$`, []string{"yes", "maybe"}, []string{"y", "yesno", ""}},
	{`\d{3}-\d{4}`, []string{"555-1234"}, []string{"555-123"}},
	{`(?i)hello( world)?[!.]*`, []string{"HeLLo", "hello WORLD!!!"}, []string{"hell"}},
	{`[^\n"]*`, []string{"", "é 中 😀"}, []string{"a\nb", `"`, "\xff"}},
	{`(a|ab)(c|bcd)*`, []string{"abcd", "acbcd", "ab"}, []string{"b"}},
	{`\p{Greek}+\s\pL?`, []string{"αβγ x", "Ω "}, []string{"a x"}},
	{`(?s).{2}`, []string{"\n\n", "é😀"}, []string{"a"}},
	{`.`, []string{"é"}, []string{"\n", ""}},
	{`[\x{10000}-\x{10ffff}]`, []string{"😀"}, []string{"中"}},
	{`([0-9]{1,2}\.){0,3}`, []string{"", "1.22.3."}, []string{"1.1.1.1."}},
	{`(?:x{2,3}?y*?)+`, []string{"xx", "xxxyyxx"}, []string{"x"}},
}

func TestRegexes(t *testing.T) {
	v := smallVocabulary(t)
	for _, test := range regexCases {
		t.Run(test.pattern, func(t *testing.T) {
			g, err := Compile(Spec{Regex: test.pattern}, v)
			require.NoError(t, err)
			whole := regexp.MustCompile(`\A(?:` + test.pattern + `)\z`)
			for _, text := range test.yes {
				assert.True(t, feed(g, text), "%q", text)
			}
			for _, text := range test.no {
				assert.False(t, feed(g, text), "%q", text)
			}
			walk(t, g, func(out []byte) string {
				if !whole.Match(out) {
					return "does not match"
				}
				return ""
			})
		})
	}
}

// walk draws outputs at random from the masks. Each mask must be that of trying every token, and each output be judged good.
func walk(t *testing.T, g *Grammar, judge func(out []byte) string) {
	t.Helper()
	rng := rand.New(rand.NewSource(7))
	v := g.vocab
	mask := make([]uint32, v.MaskWords())
	eos := v.eos[0]
	complete := 0
	for range 25 {
		m := g.NewMatcher()
		var out []byte
		for step := 0; ; step++ {
			require.True(t, m.Mask(mask), "dead end after %q", out)
			ids := allowed(mask)
			require.Equal(t, m.Done(), slices.Contains(ids, eos), "%q", out)
			if rng.Intn(30) == 0 {
				requireMask(t, m, ids, out)
			}
			id := ids[rng.Intn(len(ids))]
			if m.Done() && (rng.Intn(4) == 0 || step > 40) {
				id = eos
			} else if step > 15 { // steer to an end
				id = closer(v, ids, rng)
			}
			require.NoError(t, m.Accept(id), "%q", out)
			if id == eos {
				require.Empty(t, judge(out), "%q", out)
				require.True(t, m.Ended())
				require.Error(t, m.Accept(ids[0]))
				complete++
				break
			}
			out = append(out, v.texts[id]...)
			if step > 500 {
				break
			}
		}
	}
	require.Greater(t, complete, 20)
}

// closer prefers tokens that close something, in most cases.
func closer(v *Vocabulary, ids []int32, rng *rand.Rand) int32 {
	texts := []string{"}", "]", `"`, "b", "@", ".com"}
	rng.Shuffle(len(texts), func(i, j int) { texts[i], texts[j] = texts[j], texts[i] })
	for _, text := range texts {
		for _, id := range ids {
			if id != v.eos[0] && string(v.texts[id]) == text && rng.Intn(8) > 0 {
				return id
			}
		}
	}
	return ids[rng.Intn(len(ids))]
}

// requireMask compares a mask with the definition: a token is allowed if Accept takes it.
func requireMask(t *testing.T, m *Matcher, ids []int32, out []byte) {
	t.Helper()
	in := map[int32]bool{}
	for _, id := range ids {
		in[id] = true
	}
	for id := range int32(m.g.vocab.size) {
		err := m.Clone().Accept(id)
		require.Equal(t, err == nil, in[id], "token %d %q after %q: %v", id, m.g.vocab.texts[id], out, err)
	}
}

// TestTokenisedSamples: a valid text is accepted however it is cut into tokens, each of them in the mask.
func TestTokenisedSamples(t *testing.T) {
	v := smallVocabulary(t)
	tk, err := testTokenizer()
	require.NoError(t, err)
	byText := map[string]int32{}
	for id, b := range v.texts {
		if b != nil {
			byText[string(b)] = int32(id)
		}
	}
	rng := rand.New(rand.NewSource(3))
	mask := make([]uint32, v.MaskWords())
	accept := func(g *Grammar, ids []int32, text string) {
		m := g.NewMatcher()
		for _, id := range append(ids, v.eos[0]) {
			require.True(t, m.Mask(mask))
			require.NotZero(t, mask[id/32]&(1<<(id%32)), "%q in %s", v.texts[id], text)
			require.NoError(t, m.Accept(id))
		}
	}
	for _, test := range schemaCases {
		g, err := Compile(Spec{JSONSchema: test.schema}, v)
		require.NoError(t, err)
		for _, text := range test.yes {
			accept(g, tk.Encode(text, false), text)
			for range 5 {
				var ids []int32
				for rest := text; rest != ""; {
					n := 1 + rng.Intn(min(6, len(rest)))
					for byText[rest[:n]] == 0 && n > 1 {
						n--
					}
					ids = append(ids, byText[rest[:n]])
					rest = rest[n:]
				}
				accept(g, ids, text)
			}
		}
	}
}

// TestLongStrings: states that are told to be alike must allow the same.
func TestLongStrings(t *testing.T) {
	v := smallVocabulary(t)
	for _, bounds := range [][2]int{{0, 600}, {300, 600}, {700, 701}, {0, 260}, {255, 4000}} {
		g, err := Compile(Spec{JSONSchema: fmt.Sprintf(`{"type":"string","minLength":%d,"maxLength":%d}`, bounds[0], bounds[1])}, v)
		require.NoError(t, err)
		mask := make([]uint32, v.MaskWords())
		m := g.NewMatcher()
		accept := func(text string) error {
			for i := range len(text) {
				if err := m.Accept(int32(slices.IndexFunc(v.texts, func(b []byte) bool { return string(b) == text[i:i+1] }))); err != nil {
					return err
				}
			}
			return nil
		}
		require.NoError(t, accept(`"`))
		for n := range bounds[1] {
			if n%97 == 0 || n < 3 || n == bounds[0] || n == bounds[0]-1 || bounds[1]-n < 3 {
				m.Mask(mask)
				requireMask(t, m, allowed(mask), []byte(fmt.Sprint(n)))
			}
			require.NoError(t, accept("x"))
		}
		require.Error(t, accept("x"))
		require.NoError(t, accept(`"`))
		require.True(t, m.Ended())
	}
}

func TestErrors(t *testing.T) {
	v := smallVocabulary(t)
	for schema, want := range map[string]string{
		`{`:                 "not valid JSON",
		`{} {}`:             "more than one value",
		`3`:                 "#: a schema is an object",
		`false`:             "no value satisfies",
		`{"type":"strnig"}`: `#/type: "strnig" is not a type: want one of null`,
		`{"type":3}`:        "#/type",
		`{"not":{}}`:        "#/not: this keyword is not supported",
		`{"type":"array","items":{"type":"object","patternProperties":{}}}`: "#/items/patternProperties",
		`{"type":"array","uniqueItems":true}`:                               "uniqueItems",
		`{"$ref":"#/$defs/x"}`:                                              `"#/$defs/x" points to nothing`,
		`{"$ref":"http://x"}`:                                               "only references within the schema",
		`{"$ref":"#"}`:                                                      "no value satisfies",
		`{"anyOf":[{"type":"null"},{"$ref":"#"}]}`:                          "leads back to itself",
		`{"properties":{"a":{"$ref":"#"}},"required":["a"]}`:                "no value satisfies",
		`{"allOf":[{"$ref":"#"}]}`:                                          "without end",
		`{"allOf":[{"const":1},{"const":2}]}`:                               "exclude each other",
		`{"allOf":[{"type":"string"},{"type":"integer"}]}`:                  "no value satisfies",
		`{"type":"string","pattern":"("}`:                                   "#/pattern: regular expression",
		`{"type":"string","pattern":"a\\b"}`:                                "not supported",
		`{"type":"string","pattern":"^a{3}$","maxLength":2}`:                "write the length into the pattern",
		`{"type":"string","minLength":-1}`:                                  "#/minLength: want a whole number",
		`{"type":"string","minLength":9000}`:                                "more than 5000",
		`{"type":"string","minLength":3,"maxLength":2}`:                     "no value satisfies",
		`{"type":"integer","minimum":"x"}`:                                  "#/minimum: want a number",
		`{"type":"integer","minimum":3,"maximum":2}`:                        "no value satisfies",
		`{"type":"integer","minimum":1e30}`:                                 "digits",
		`{"type":"array","minItems":100000}`:                                "more than 10000 items",
		`{"enum":[]}`:                                                       "no value satisfies",
		`{"enum":3}`:                                                        "#/enum",
		`{"enum":["a"],"minLength":2}`:                                      "beside const or enum",
		`{"required":[1]}`:                                                  "#/required",
		`{"properties":[]}`:                                                 "#/properties",
		`{"anyOf":[]}`:                                                      "#/anyOf",
		strings.Repeat(`{"type":"array","items":`, 80) + "{}" + strings.Repeat("}", 80): "nested",
		strings.Repeat("[", 100_000):                   "nested too deep",
		`{"x":"` + strings.Repeat("a", 300_000) + `"}`: "longer than 256 KiB",
		`{"type":"array","maxItems":9000,"items":{"type":"string","pattern":"^(a|b){900}(c|d){900}(e|f){900}$"},"prefixItems":[` +
			strings.Repeat(`{"type":"string","pattern":"^(a|b){900}$"},`, 99) + `{}]}`: "too complex",
	} {
		_, err := Compile(Spec{JSONSchema: schema}, v)
		var e *Error
		if assert.ErrorAs(t, err, &e, "%.100s", schema) {
			assert.Contains(t, err.Error(), want, "%.100s", schema)
			assert.NotContains(t, err.Error(), "\n")
		}
	}
	for pattern, want := range map[string]string{
		`(`: "missing closing", `a^b`: "not supported", `\bx`: "not supported", `(?m)^a$`: "not supported", `[^\x00-\x{10ffff}]`: "no text matches",
		`(((a{1,30}){1,30}){1,30})`: "", strings.Repeat("(a|b)?", 100) + "(a|b)*a(a|b){40}": "too complex",
	} {
		_, err := Compile(Spec{Regex: pattern}, v)
		var e *Error
		if want != "" && assert.ErrorAs(t, err, &e, pattern) {
			assert.Contains(t, err.Error(), want)
		}
	}
	_, err := Compile(Spec{Regex: "a", JSONSchema: "{}"}, v)
	require.Error(t, err)
}

// TestHeavySpecs are big but not refused, or refused in time.
func TestHeavySpecs(t *testing.T) {
	v := smallVocabulary(t)
	var names, props []string
	for i := range 5000 {
		names = append(names, fmt.Sprintf(`"p%d"`, i))
		props = append(props, fmt.Sprintf(`"p%d":{"type":"boolean"}`, i))
	}
	refs := make([]string, 200)
	for i := range refs {
		refs[i] = fmt.Sprintf(`"d%d":{"type":"array","items":{"anyOf":[{"$ref":"#/$defs/d%d"},{"$ref":"#/$defs/d%d"}]}}`, i, (i*7+1)%len(refs), (i*13+5)%len(refs))
	}
	for name, spec := range map[string]Spec{
		"many properties": {JSONSchema: `{"properties":{` + strings.Join(props[:1000], ",") + `},"required":[` + strings.Join(names[:1000], ",") + `]}`},
		"too many":        {JSONSchema: `{"properties":{` + strings.Join(props, ",") + `},"required":[` + strings.Join(names, ",") + `]}`},
		"many names":      {JSONSchema: `{"properties":{` + strings.Join(props[:300], ",") + `},"additionalProperties":true}`},
		"big enum":        {JSONSchema: `{"enum":[` + strings.Join(names, ",") + `]}`},
		"ambiguous":       {JSONSchema: `{"$ref":"#/$defs/d0","$defs":{` + strings.Join(refs, ",") + `}}`},
		"letters":         {Regex: `(\pL{1,200}\pN{1,200}){1,4}`},
		"any text":        {Regex: `.{0,1000}`},
	} {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			g, err := Compile(spec, v)
			require.Less(t, time.Since(start), 20*time.Second)
			if err != nil {
				require.ErrorContains(t, err, "too complex")
				return
			}
			run(t, g, 1)
		})
	}
}

func TestCompileRemembers(t *testing.T) {
	v := smallVocabulary(t)
	a, err := Compile(Spec{JSONSchema: person}, v)
	require.NoError(t, err)
	b, err := Compile(Spec{JSONSchema: person}, v)
	require.NoError(t, err)
	require.Same(t, a, b)
	for i := range keptGrammars {
		_, err := Compile(Spec{Regex: fmt.Sprint(i)}, v)
		require.NoError(t, err)
	}
	c, err := Compile(Spec{JSONSchema: person}, v)
	require.NoError(t, err)
	require.NotSame(t, a, c)
	require.LessOrEqual(t, len(v.compiled), keptGrammars)
}

// TestConcurrentMatchers run under the race detector in CI.
func TestConcurrentMatchers(t *testing.T) {
	g, err := Compile(Spec{JSONSchema: "{}"}, smallVocabulary(t))
	require.NoError(t, err)
	done := make(chan []byte)
	for seed := range int64(4) {
		go func() {
			rng := rand.New(rand.NewSource(seed))
			m, mask := g.NewMatcher(), make([]uint32, g.vocab.MaskWords())
			var out []byte
			for step := 0; !m.Ended() && m.Mask(mask); step++ {
				ids := allowed(mask)
				id := ids[rng.Intn(len(ids))]
				switch {
				case step >= 30 && m.Done():
					id = g.vocab.eos[0]
				case step >= 30:
					id = closer(g.vocab, ids, rng)
				}
				if m.Accept(id) != nil {
					break
				}
				out = append(out, g.vocab.texts[id]...)
			}
			done <- out
		}()
	}
	for range 4 {
		out := <-done
		require.True(t, json.Valid(out), "%q", out)
	}
}
