package server

// Limits of what one request may ask for. They are far above what clients need and keep one request from holding the server's
// memory or time; bodies and prompts are bounded by --max-body-bytes and the model's context.
const (
	maxBatchPrompts   = 2048     // prompts of one request
	maxChoices        = 128      // n: OpenAI's own limit
	maxGenerations    = 4096     // prompts times n
	maxStops          = 16       // stop strings; OpenAI allows 4
	maxStopBytes      = 512      // of one stop string
	maxStopTokens     = 64       // stop token ids
	maxLogitBias      = 1024     // entries; OpenAI allows 300
	maxTopLogProbs    = 20       // OpenAI's own limit
	maxRegexBytes     = 8 << 10  // a regex compiles to an automaton
	maxSchemaBytes    = 64 << 10 // of a JSON schema
	maxMessages       = 8192     // chat messages of one request
	maxIDBytes        = 128      // rid, X-Request-Id
	maxNameBytes      = 512      // model names, roles, tool names
	maxHeaderBytes    = 64 << 10
	maxBodiesInMemory = 1 << 30   // bytes of bodies that are being read or decoded, all requests together
	maxDrainBytes     = 256 << 20 // of a body too large that is read and dropped so that its client sees the answer
)
