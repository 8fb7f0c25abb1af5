// Package tokenizer turns text into token ids and back as the Hugging Face tokenizers library does, and renders chat
// templates. It reads tokenizer.json ([Load]) and the metadata of GGUF files ([FromGGUF]): byte-pair encodings, byte-level
// (Llama 3, Qwen, GPT-2, SmolLM) and SentencePiece-style with byte fallback (Llama 2, Mistral).
//
// A text takes this way: ill-formed UTF-8 is replaced; added tokens are cut out; the rest is normalised, cut into pieces by
// the pre-tokenizers, and each piece is merged from bytes or runes to tokens. All of it is linear in the text, or n log n
// for a single piece, whatever the text.
//
//	t, err := tokenizer.Load("path/to/model")
//	ids := t.Encode("Hello, world", true)
//	d := t.NewDecoder(true)
//	for _, id := range ids {
//		fmt.Print(d.Add(id)) // whole characters only
//	}
//	fmt.Print(d.Flush())
package tokenizer
