//go:build cuda

package nvtx

/*
#include <nvtx3/nvToolsExt.h>
#include <stdlib.h>

static nvtxEventAttributes_t attributes(nvtxStringHandle_t message, uint32_t category, uint32_t color, int kind, uint64_t payload) {
	nvtxEventAttributes_t a = {0};
	a.version = NVTX_VERSION;
	a.size = NVTX_EVENT_ATTRIB_STRUCT_SIZE;
	a.category = category;
	if (color) { a.colorType = NVTX_COLOR_ARGB; a.color = color; }
	if (kind == 1) { a.payloadType = NVTX_PAYLOAD_TYPE_INT64; a.payload.llValue = (int64_t)payload; }
	if (kind == 2) { a.payloadType = NVTX_PAYLOAD_TYPE_DOUBLE; __builtin_memcpy(&a.payload.dValue, &payload, 8); }
	a.messageType = NVTX_MESSAGE_TYPE_REGISTERED;
	a.message.registered = message;
	return a;
}
static uint64_t tokamak_range_start(nvtxDomainHandle_t d, nvtxStringHandle_t message, uint32_t category, uint32_t color, int kind, uint64_t payload) {
	nvtxEventAttributes_t a = attributes(message, category, color, kind, payload);
	return nvtxDomainRangeStartEx(d, &a);
}
static void tokamak_range_end(nvtxDomainHandle_t d, uint64_t id) { nvtxDomainRangeEnd(d, id); }
static void tokamak_mark(nvtxDomainHandle_t d, nvtxStringHandle_t message, uint32_t category, uint32_t color, int kind, uint64_t payload) {
	nvtxEventAttributes_t a = attributes(message, category, color, kind, payload);
	nvtxDomainMarkEx(d, &a);
}
*/
import "C"

import (
	"sync"
	"unsafe"
)

// Domain keeps marks apart from those of other libraries. Its messages and categories are registered with the tool once.
type Domain struct {
	handle     C.nvtxDomainHandle_t
	messages   sync.Map // string -> C.nvtxStringHandle_t
	mu         sync.Mutex
	categories map[string]C.uint32_t
}

var (
	domains   sync.Map // string -> *Domain
	defaultOf = sync.OnceValue(func() *Domain { return NewDomain("tokamak") })
)

// NewDomain makes a domain, once for each name.
func NewDomain(name string) *Domain {
	if d, ok := domains.Load(name); ok {
		return d.(*Domain)
	}
	c := C.CString(name)
	defer C.free(unsafe.Pointer(c))
	d, _ := domains.LoadOrStore(name, &Domain{handle: C.nvtxDomainCreateA(c), categories: map[string]C.uint32_t{}})
	return d.(*Domain)
}

func available() error { return nil }

func (d *Domain) orDefault() *Domain {
	if d == nil {
		return defaultOf()
	}
	return d
}

// message registers text. Texts should be constants: each is kept for the life of the process.
func (d *Domain) message(text string) C.nvtxStringHandle_t {
	if h, ok := d.messages.Load(text); ok {
		return h.(C.nvtxStringHandle_t)
	}
	c := C.CString(text)
	defer C.free(unsafe.Pointer(c))
	h, _ := d.messages.LoadOrStore(text, C.nvtxDomainRegisterStringA(d.handle, c))
	return h.(C.nvtxStringHandle_t)
}

func (d *Domain) category(name string) C.uint32_t {
	if name == "" {
		return 0
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	id, ok := d.categories[name]
	if !ok {
		id = C.uint32_t(len(d.categories) + 1)
		d.categories[name] = id
		c := C.CString(name)
		defer C.free(unsafe.Pointer(c))
		C.nvtxDomainNameCategoryA(d.handle, id, c)
	}
	return id
}

func rangeStart(message string, a *attributes) uint64 {
	d := a.domain.orDefault()
	return uint64(C.tokamak_range_start(d.handle, d.message(message), d.category(a.category), C.uint32_t(a.color), C.int(a.kind), C.uint64_t(a.payload)))
}

func rangeEnd(domain *Domain, id uint64) {
	C.tokamak_range_end(domain.orDefault().handle, C.uint64_t(id))
}

func mark(message string, a *attributes) {
	d := a.domain.orDefault()
	C.tokamak_mark(d.handle, d.message(message), d.category(a.category), C.uint32_t(a.color), C.int(a.kind), C.uint64_t(a.payload))
}
