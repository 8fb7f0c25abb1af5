package load

import (
	"encoding/json"
	"strings"

	"github.com/tidwall/gjson"

	"github.com/tokamak-engine/tokamak/fixtures/datasets"
)

// Kind is a kind of server: a row of [Kinds]. It puts a request into the server's own wire form and reads its answer.
type Kind struct {
	Name        string
	DefaultPort int
	path        string
	body        func(p *prompt, s *Sampling) any
	// read takes in one event of a stream, or the whole of a reply that is not streamed.
	read func(data []byte, d *delta)

	chat         bool   // takes messages
	takesIDs     bool   // takes prompts as token ids
	jsonLines    bool   // streams JSON lines, not server-sent events
	endMark      bool   // a stream that ends without d.end was cut off
	exactPrompt  bool   // counts exactly the prompt's tokens: adds no template or BOS to ids
	forcesLength bool   // can be told to ignore the end-of-sequence token
	saysFinish   bool   // gives a finish reason
	flushPath    string // empties the prefix cache; "" if the server has no such route
}

// Sampling is what all requests of a run ask for.
type Sampling struct {
	Model       string
	Temperature float64
	TopP        float64 // 1 keeps all
	IgnoreEOS   bool
	Stream      bool
	// Extra is merged into every body, on top.
	Extra map[string]json.RawMessage
}

// prompt is one turn with its history, ready to be put into a body. One of ids, text and messages is used.
type prompt struct {
	ids       []int32
	text      string
	messages  []datasets.Message
	outputLen int
}

// idsOrText is the value of a field that takes either.
func (p *prompt) idsOrText() any {
	if p.ids != nil {
		return p.ids
	}
	return p.text
}

// delta is what one event of a stream says.
type delta struct {
	text       []byte
	cumulative bool  // text holds all so far, not only what is new
	content    bool  // the event carries a token, even if its text is still empty
	tokens     int   // new tokens, if the event says so only for itself
	completion Count // tokens so far
	total      bool  // completion is the answer's total, told at its end: this event brings none of them itself
	prompt     Count
	cached     Count
	outputIDs  gjson.Result
	finish     string
	end        bool
	err        string
}

// Kinds lists the kinds of servers, in the order that help shows them.
func Kinds() []*Kind {
	native := Kind{
		DefaultPort: 30000, path: "/generate", body: generateBody, read: readGenerate, takesIDs: true, endMark: true,
		exactPrompt: true, forcesLength: true, saysFinish: true, flushPath: "/flush_cache",
	}
	completions := Kind{
		DefaultPort: 30000, path: "/v1/completions", body: completionsBody, read: readOpenAI, takesIDs: true, endMark: true,
		exactPrompt: true, forcesLength: true, saysFinish: true, flushPath: "/flush_cache",
	}
	chat := Kind{
		DefaultPort: 30000, path: "/v1/chat/completions", body: chatBody, read: readOpenAI, chat: true, endMark: true,
		forcesLength: true, saysFinish: true, flushPath: "/flush_cache",
	}
	named := func(k Kind, name string, change func(*Kind)) *Kind {
		k.Name = name
		if change != nil {
			change(&k)
		}
		return &k
	}
	vllm := func(k *Kind) { k.DefaultPort, k.flushPath = 8000, "/reset_prefix_cache" }
	strict := func(k *Kind) {
		k.DefaultPort, k.flushPath, k.forcesLength, k.exactPrompt = 8000, "", false, false
		k.body = strictly(k.body)
	}
	return []*Kind{
		named(native, "tokamak", func(k *Kind) { k.body, k.read = deltaBody, readDelta }),
		named(chat, "tokamak-chat", nil),
		named(native, "sglang", nil),
		named(completions, "sglang-oai", nil),
		named(chat, "sglang-oai-chat", nil),
		named(completions, "vllm", vllm),
		named(chat, "vllm-chat", vllm),
		named(completions, "openai", strict),
		named(chat, "openai-chat", strict),
		{
			Name: "llama.cpp", DefaultPort: 8080, path: "/completion", body: llamaBody, read: readLlama, takesIDs: true, endMark: true,
			forcesLength: true, saysFinish: true,
		},
		{
			Name: "ollama", DefaultPort: 11434, path: "/api/generate", body: ollamaBody, read: readOllama, jsonLines: true, endMark: true,
			saysFinish: true,
		},
		{Name: "trt", DefaultPort: 8000, path: "/v2/models/ensemble/generate_stream", body: tritonBody, read: readTriton, forcesLength: true},
	}
}

// FindKind gives the kind called name, nil if there is none.
func FindKind(name string) *Kind {
	for _, k := range Kinds() {
		if k.Name == name {
			return k
		}
	}
	return nil
}

// KindNames lists the kinds' names.
func KindNames() []string {
	var names []string
	for _, k := range Kinds() {
		names = append(names, k.Name)
	}
	return names
}

// NeedsText tells whether prompts must be texts: token ids have to be decoded first.
func (k *Kind) NeedsText() bool { return !k.takesIDs }

// NeedsModel tells whether bodies must name a model.
func (k *Kind) NeedsModel() bool {
	return strings.HasPrefix(k.path, "/v1/") || k.path == "/api/generate"
}

// Own tells whether the kind is this project's own server.
func (k *Kind) Own() bool { return strings.HasPrefix(k.Name, "tokamak") }
