// The CPU backend behind datong/backend.h: turns calls into executor calls, and exceptions into dt_error objects.
#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include <unistd.h>

#include "core/error.h"
#include "executor/program.h"
#include "plugin_cpu/limits.h"

using namespace datong;

struct dt_error {
  dt_code code;
  std::string message;
};
struct dt_device {
  std::shared_ptr<Device> device;
};
struct dt_program {
  Program program;
};
struct dt_cache {
  std::unique_ptr<Cache> cache;
};

namespace {

// The only place where exceptions end. Without memory for an error object there is still one: it is static.
dt_error no_memory{DT_OUT_OF_MEMORY, "[cpu] out of memory"};

template <class Call>
dt_error* guarded(Call call) noexcept {
  try {
    call();
    return nullptr;
  } catch (const Error& e) {
    auto* error = new (std::nothrow) dt_error{e.code(), {}};
    if (!error) return &no_memory;
    try {
      error->message = e.what();
    } catch (...) {
    }
    return error;
  } catch (const std::bad_alloc&) {
    return &no_memory;
  } catch (const std::exception& e) {
    return new (std::nothrow) dt_error{DT_INTERNAL, e.what()};
  }
}

dt_code error_code(const dt_error* e) { return e->code; }
const char* error_message(const dt_error* e) { return e->message.c_str(); }
void error_free(dt_error* e) {
  if (e != &no_memory) delete e;
}

// ---- options ------------------------------------------------------------------------------------------------------

void check_options(const dt_pairs* options, std::initializer_list<const char*> known) {
  for (int32_t i = 0; options && i < options->count; ++i) {
    const dt_pair& pair = options->items[i];
    if (!pair.key || !pair.value) throw Error(DT_INVALID, "[cpu] an option has no key or no value");
    if (std::none_of(known.begin(), known.end(), [&](const char* k) { return !std::strcmp(k, pair.key); }))
      throw Error(DT_INVALID, text("[cpu] option `%.40s` is not known here", pair.key));
  }
}

const char* option(const dt_pairs* options, const char* key) {
  for (int32_t i = 0; options && i < options->count; ++i)
    if (!std::strcmp(options->items[i].key, key)) return options->items[i].value;
  return nullptr;
}

int64_t integer_option(const dt_pairs* options, const char* key, int64_t otherwise, int64_t least, int64_t most) {
  const char* value = option(options, key);
  if (!value) return otherwise;
  char* end = nullptr;
  errno = 0;
  const long long n = std::strtoll(value, &end, 10);
  if (errno || end == value || *end || n < least || n > most)
    throw Error(DT_INVALID, text("[cpu] option %s is a number from %lld to %lld, `%.40s` came", key,
                                 static_cast<long long>(least), static_cast<long long>(most), value));
  return n;
}

// The option, else DATONG_ISA, else the best there is.
std::string isa_name(const dt_pairs* options) {
  if (const char* isa = option(options, "isa")) return isa;
  const char* isa = std::getenv("DATONG_ISA");
  return isa && *isa ? isa : "best";
}

// ---- devices ------------------------------------------------------------------------------------------------------

int32_t device_count() { return 1; }

dt_error* device_info(int32_t index, dt_device_info* out) {
  return guarded([&] {
    if (index != 0) throw Error(DT_INVALID, text("[cpu] there is device 0, %d was asked for", index));
    static const CpuFeatures f = detect_cpu_features();
    static const std::string threads = std::to_string(default_thread_count());
    static const std::string description =
        text("this processor, best instruction set %s, %s threads", isa_in_words(f), threads.c_str());
    static const dt_pair attributes[] = {
        {"threads", threads.c_str()},          {"avx2", f.avx2 ? "1" : "0"},
        {"avx512", f.avx512 ? "1" : "0"},      {"avx512_vnni", f.avx512_vnni ? "1" : "0"},
        {"avx512_bf16", f.avx512_bf16 ? "1" : "0"},
        {"neon", f.neon ? "1" : "0"},          {"neon_dotprod", f.neon_dotprod ? "1" : "0"}};
    const int64_t memory = static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGE_SIZE);
    *out = {sizeof *out, "cpu", description.c_str(), memory, {sizeof(dt_pairs), attributes, static_cast<int32_t>(std::size(attributes))}};
  });
}

dt_error* device_open(int32_t index, const dt_pairs* options, dt_device** out) {
  return guarded([&] {
    if (index != 0) throw Error(DT_INVALID, text("[cpu] there is device 0, %d was asked for", index));
    check_options(options, {"threads", "isa"});
    const std::string isa = isa_name(options);
    const int64_t threads = integer_option(options, "threads", default_thread_count(), 1, 1024);
    const CpuFeatures features = cpu_features_for(isa.c_str());
    *out = new dt_device{std::make_shared<Device>(features, isa, static_cast<int>(threads))};
  });
}

void device_close(dt_device* device) { delete device; }

// ---- questions ----------------------------------------------------------------------------------------------------

void put_text(dt_answer* out, bool yes, const char* text) {
  out->struct_size = sizeof *out;
  out->yes = yes;
  std::snprintf(out->text, sizeof out->text, "%s", text);
}

dt_error* supports(const dt_node* node, const dt_value* values, int32_t value_count, dt_answer* out) {
  return guarded([&] {
    if (!node || value_count < 0 || (value_count && !values)) throw Error(DT_INVALID, "[cpu] supports got no node or no values");
    try {
      std::vector<Value> checked;
      for (int32_t i = 0; i < value_count; ++i) checked.push_back(read_value(item(values, i), nullptr));
      const NodeView view(*node, checked);
      const BuildContext context{cpu_features_for(isa_name(nullptr).c_str()), nullptr};
      put_text(out, true, make_task(view, context)->implementation.c_str());
    } catch (const Error& e) {
      put_text(out, false, e.what());
    }
  });
}

const char* const* fusions() { return fused_operators(); }

// ---- programs -----------------------------------------------------------------------------------------------------

dt_error* compile(dt_device* device, const dt_part* part, const dt_pairs* options, dt_program** out) {
  return guarded([&] {
    check_options(options, {"activations", "cache_dtype", "max_tokens", "max_rows", "pack_directory", "weights"});
    ProgramOptions o;
    if (const char* dtype = option(options, "cache_dtype")) {
      const char* names[] = {"f32", "f16", "bf16"};
      const auto* found = std::find_if(names, names + 3, [&](const char* n) { return !std::strcmp(n, dtype); });
      if (found == names + 3)
        throw Error(DT_INVALID, text("[cpu] option cache_dtype is f32, f16 or bf16, `%.40s` came", dtype));
      o.cache_type = static_cast<CacheType>(found - names);
      o.cache_type_given = true;
    }
    if (const char* kind = option(options, "activations")) {
      const char* names[] = {"i8", "f32", "bf16"};
      const auto* found = std::find_if(names, names + 3, [&](const char* n) { return !std::strcmp(n, kind); });
      if (found == names + 3)
        throw Error(DT_INVALID, text("[cpu] option activations is i8, f32 or bf16, `%.40s` came", kind));
      o.activations = static_cast<Activations>(found - names);
    }
    if (const char* layout = option(options, "weights")) {
      if (std::strcmp(layout, "packed") && std::strcmp(layout, "mapped"))
        throw Error(DT_INVALID, text("[cpu] option weights is packed or mapped, `%.40s` came", layout));
      o.pack_weights = !std::strcmp(layout, "packed");
    }
    if (const char* directory = option(options, "pack_directory")) o.pack_directory = directory;
    o.max_tokens = integer_option(options, "max_tokens", 0, 1, 1 << 24);
    o.max_rows = integer_option(options, "max_rows", 0, 1, 1 << 24);
    *out = new dt_program{Program(device->device, *part, o)};
  });
}

void program_free(dt_program* program) { delete program; }

void check_node(const dt_program* program, int32_t node) {
  const size_t count = program->program.node_count();
  if (node < 0 || static_cast<size_t>(node) >= count)
    throw Error(DT_INVALID, text("[cpu] the program has %zu nodes, node %d was asked for", count, node));
}

dt_error* program_node(const dt_program* program, int32_t node, dt_answer* out) {
  return guarded([&] {
    check_node(program, node);
    put_text(out, true, program->program.implementation(static_cast<size_t>(node)).c_str());
  });
}

dt_error* program_memory(const dt_program* program, dt_memory* out) {
  const Program& p = program->program;
  *out = {sizeof *out, p.mapped_bytes(), p.private_bytes(), p.arena_bytes(), 0};
  return nullptr;
}

dt_error* program_profile(dt_program* program, int32_t on) {
  program->program.profile(on != 0);
  return nullptr;
}

dt_error* program_time(const dt_program* program, int32_t node, dt_node_time* out) {
  return guarded([&] {
    check_node(program, node);
    const Program::Time& t = program->program.time(static_cast<size_t>(node));
    *out = {sizeof *out, t.runs, t.total, t.last_begin, t.last};
  });
}

dt_error* device_limits(dt_device* device, int64_t bytes, dt_limits* out) {
  return guarded([&] {
    constexpr int64_t kMost = int64_t{1} << 34;
    if (bytes < 1 || bytes > kMost) throw Error(DT_INVALID, text("[cpu] 1 to %lld bytes can be read to measure, %lld came", static_cast<long long>(kMost), static_cast<long long>(bytes)));
    const Limits l = measure_limits(*device->device, bytes);
    *out = {sizeof *out, l.bytes, l.int8, l.f32};
  });
}

// ---- caches and run -----------------------------------------------------------------------------------------------

dt_error* cache_layout(const dt_program* program, dt_cache_layout* out) {
  const Program& p = program->program;
  const int32_t dtype = p.cache_type() == CacheType::f32 ? DT_F32 : p.cache_type() == CacheType::f16 ? DT_F16 : DT_BF16;
  const int64_t full = cache_bytes_per_block(p.caches(), p.cache_type(), false);
  const int64_t windows = cache_bytes_per_block(p.caches(), p.cache_type(), true);
  const dt_cache_layout all{sizeof all, static_cast<int32_t>(kBlockSize), dtype, full, windows, cache_bytes_per_state(p.caches())};
  const size_t room = out->struct_size;  // an older host counts windows among the blocks
  if (room >= sizeof all) {
    *out = all;
  } else {
    out->block_size = all.block_size;
    out->dtype = all.dtype;
    out->bytes_per_block = full + windows;
  }
  return nullptr;
}

dt_error* cache_create(dt_program* program, int32_t blocks, dt_cache** out) {
  return guarded([&] { *out = new dt_cache{program->program.create_cache({blocks})}; });
}

dt_error* cache_create_sized(dt_program* program, int32_t blocks, int32_t window_blocks, int32_t states, dt_cache** out) {
  return guarded([&] { *out = new dt_cache{program->program.create_cache({blocks, window_blocks, states})}; });
}

dt_error* cache_copy_state(dt_cache* cache, int32_t source, int32_t target, dt_stream*) {
  return guarded([&] { cache->cache->copy_state(source, target); });
}

void cache_free(dt_cache* cache) { delete cache; }

dt_error* cache_copy_block(dt_cache* cache, int32_t source, int32_t target, dt_stream*) {
  return guarded([&] { cache->cache->copy_block(source, target); });
}

dt_error* run(dt_program* program, dt_cache* cache, const dt_step* step, const dt_tensor* inputs, int32_t input_count,
              dt_tensor* outputs, int32_t output_count, dt_stream*) {
  return guarded([&] {
    program->program.run(cache ? cache->cache.get() : nullptr, *step, inputs, input_count, outputs, output_count);
  });
}

const dt_api* api() {
  static const dt_api table = [] {
    dt_api a{};
    a.struct_size = sizeof a;
    a.major = DT_API_MAJOR;
    a.minor = DT_API_MINOR;
    a.name = "cpu";
    a.error_code = error_code;
    a.error_message = error_message;
    a.error_free = error_free;
    a.device_count = device_count;
    a.device_info = device_info;
    a.device_open = device_open;
    a.device_close = device_close;
    a.supports = supports;
    a.fusions = fusions;
    a.compile = compile;
    a.program_free = program_free;
    a.program_node = program_node;
    a.program_memory = program_memory;
    a.cache_layout = cache_layout;
    a.cache_create = cache_create;
    a.cache_free = cache_free;
    a.cache_copy_block = cache_copy_block;
    a.run = run;
    a.cache_create_sized = cache_create_sized;
    a.cache_copy_state = cache_copy_state;
    a.program_profile = program_profile;
    a.program_time = program_time;
    a.device_limits = device_limits;
    return a;
  }();
  return &table;
}

}  // namespace

extern "C" [[gnu::visibility("default")]] const dt_api* datong_backend_get_api(int32_t major, int32_t /*minor*/);
const dt_api* datong_backend_get_api(int32_t major, int32_t) { return major == DT_API_MAJOR ? api() : nullptr; }
