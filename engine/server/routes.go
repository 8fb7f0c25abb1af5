package server

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// need is what a route needs of the server.
type need int

const (
	nothing     need = iota
	engineThere      // the model is loaded; draining is fine
	engineReady      // generates: refused while the server drains
)

// route is one row of the table of routes.
type route struct {
	path    string
	methods []string
	open    bool // needs no API key
	needs   need
	serve   func(*call) error
}

func (r *route) allows(method string) bool { return slices.Contains(r.methods, method) }

var (
	get       = []string{http.MethodGet, http.MethodHead}
	post      = []string{http.MethodPost}
	postPut   = []string{http.MethodPost, http.MethodPut}
	getOrPost = []string{http.MethodGet, http.MethodPost}
)

// routes is the list of everything the server answers.
var routes = []route{
	// Health, for probes.
	{"/health", get, true, nothing, (*call).health},
	{"/healthz", get, true, nothing, (*call).healthz},
	{"/readyz", get, true, nothing, (*call).readyz},
	{"/health_generate", get, false, engineReady, (*call).healthGenerate},
	{"/ping", get, true, nothing, (*call).health},
	{"/metrics", get, false, nothing, (*call).metrics},

	// SGLang's native API.
	{"/generate", postPut, false, engineReady, (*call).generate},
	{"/flush_cache", getOrPost, false, engineThere, (*call).flushCache},
	{"/abort_request", post, false, engineThere, (*call).abortRequest},
	{"/get_model_info", get, false, engineThere, (*call).getModelInfo},
	{"/model_info", get, false, engineThere, (*call).getModelInfo},
	{"/get_server_info", get, false, engineThere, (*call).getServerInfo},
	{"/server_info", get, false, engineThere, (*call).getServerInfo},
	{"/get_load", get, false, engineThere, (*call).getLoad},
	{"/tokenize", post, false, engineThere, (*call).tokenize},
	{"/detokenize", post, false, engineThere, (*call).detokenize},
	{"/start_profile", getOrPost, false, engineThere, (*call).startProfile},
	{"/stop_profile", getOrPost, false, engineThere, (*call).stopProfile},

	// OpenAI's.
	{"/v1/models", get, false, engineThere, (*call).models},
	{"/v1/completions", post, false, engineReady, (*call).completions},
	{"/v1/chat/completions", post, false, engineReady, (*call).chatCompletions},

	// Anthropic's and Ollama's.
	{"/v1/messages", post, false, engineReady, (*call).messages},
	{"/api/version", get, false, nothing, (*call).ollamaVersion},
	{"/api/tags", get, false, engineThere, (*call).ollamaTags},
	{"/api/generate", post, false, engineReady, (*call).ollamaGenerate},
	{"/api/chat", post, false, engineReady, (*call).ollamaChat},
}

// modelPrefix is the one route whose path has a name in it, which may hold slashes.
const modelPrefix = "/v1/models/"

var modelRoute = &route{modelPrefix, get, false, engineThere, (*call).model}

// route finds the row of a path; nil if there is none.
func (s *Server) route(path string) *route {
	if r := s.routes[path]; r != nil {
		return r
	}
	if strings.HasPrefix(path, modelPrefix) {
		return modelRoute
	}
	return nil
}

func routeTable() map[string]*route {
	table := make(map[string]*route, len(routes))
	for i := range routes {
		table[routes[i].path] = &routes[i]
	}
	return table
}

func byteCount(n int64) string {
	if n >= 1<<20 {
		return strconv.FormatInt(n>>20, 10) + " MiB"
	}
	return strconv.FormatInt(n>>10, 10) + " KiB"
}
