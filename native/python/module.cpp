// datong._native: loads backend plug-ins and calls them. Glue only: checks shapes, releases the GIL, calls.
#include <memory>
#include <mutex>
#include <optional>

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>

#include "plugin/library.h"
#include "python/part.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace datong;

namespace {

using OptionRows = std::vector<std::tuple<std::string, std::string>>;
using Numbers = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Tables = nb::ndarray<const int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Slots = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Activation = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;

// ---- objects: each keeps the one it came from alive ------------------------------------------------------------------

struct Device {
  std::shared_ptr<Library> library;
  dt_device* device = nullptr;
  ~Device() {
    if (device) library->api().device_close(device);
  }
};

struct Program {
  std::shared_ptr<Library> library;
  std::shared_ptr<Device> device;
  dt_program* program = nullptr;
  size_t output_count = 0;
  std::mutex busy;
  ~Program() {
    if (program) library->api().program_free(program);
  }
};

struct Cache {
  std::shared_ptr<Program> program;
  dt_cache* cache = nullptr;
  ~Cache() {
    if (cache) program->library->api().cache_free(cache);
  }
};

// ---- plug-in and device ----------------------------------------------------------------------------------------------

nb::list devices(const Library& library) {
  nb::list rows;
  for (int32_t i = 0; i < library.api().device_count(); ++i) {
    dt_device_info info{};
    info.struct_size = sizeof info;
    library.check(library.api().device_info(i, &info));
    nb::dict attributes;
    for (int32_t k = 0; k < info.attributes.count; ++k)
      attributes[info.attributes.items[k].key] = info.attributes.items[k].value;
    rows.append(nb::make_tuple(info.name, info.description ? info.description : "", info.memory_bytes, attributes));
  }
  return rows;
}

nb::list fusions(const Library& library) {
  nb::list names;
  if (library.api().fusions)
    for (const char* const* name = library.api().fusions(); name && *name; ++name) names.append(*name);
  return names;
}

nb::tuple supports(const Library& library, NodeRow node, std::vector<ValueRow> values) {
  PartStructs part(std::move(values), {std::move(node)});
  dt_answer answer{};
  answer.struct_size = sizeof answer;
  library.check(library.api().supports(part.nodes.data(), part.values.data(), static_cast<int32_t>(part.values.size()), &answer));
  answer.text[sizeof answer.text - 1] = 0;
  return nb::make_tuple(answer.yes != 0, static_cast<const char*>(answer.text));
}

std::shared_ptr<Device> open_device(std::shared_ptr<Library> library, int32_t index, const OptionRows& rows) {
  const Options options(rows);
  auto device = std::make_shared<Device>();
  device->library = library;
  library->check(library->api().device_open(index, options.get(), &device->device));
  return device;
}

std::shared_ptr<Program> compile(std::shared_ptr<Device> device, std::vector<ValueRow> values, std::vector<NodeRow> nodes,
                                 const std::vector<int32_t>& inputs, const std::vector<int32_t>& outputs,
                                 const std::vector<CacheRow>& cache_rows, int64_t arena_tokens, int64_t arena_rows,
                                 const OptionRows& rows) {
  const PartStructs structs(std::move(values), std::move(nodes));
  std::vector<dt_cache_spec> caches;
  for (const auto& [layer, kv_heads, key_dim, value_dim, window, kind] : cache_rows)
    caches.push_back({sizeof(dt_cache_spec), layer, kv_heads, key_dim, value_dim, window, kind});
  const dt_part part{sizeof(dt_part),
                     static_cast<int32_t>(structs.values.size()),
                     static_cast<int32_t>(structs.nodes.size()),
                     static_cast<int32_t>(inputs.size()),
                     static_cast<int32_t>(outputs.size()),
                     static_cast<int32_t>(caches.size()),
                     structs.values.data(),
                     structs.nodes.data(),
                     inputs.data(),
                     outputs.data(),
                     caches.data(),
                     arena_tokens,
                     arena_rows};
  const Options options(rows);
  auto program = std::make_shared<Program>();
  program->library = device->library;
  program->device = device;
  program->output_count = outputs.size();
  dt_error* error = nullptr;
  {
    nb::gil_scoped_release release;
    error = device->library->api().compile(device->device, &part, options.get(), &program->program);
  }
  device->library->check(error);
  return program;
}

// ---- program and cache -----------------------------------------------------------------------------------------------

std::string node_implementation(const Program& program, int32_t node) {
  dt_answer answer{};
  answer.struct_size = sizeof answer;
  program.library->check(program.library->api().program_node(program.program, node, &answer));
  answer.text[sizeof answer.text - 1] = 0;
  return answer.text;
}

nb::tuple memory(const Program& program) {
  dt_memory m{};
  m.struct_size = sizeof m;
  program.library->check(program.library->api().program_memory(program.program, &m));
  return nb::make_tuple(m.weights_mapped, m.weights_private, m.arena);
}

void profile(const Program& program, bool on) {
  if (!program.library->api().program_profile) throw CallError(DT_UNSUPPORTED, "[plug-in] this backend does not time its nodes");
  program.library->check(program.library->api().program_profile(program.program, on));
}

nb::tuple node_time(const Program& program, int32_t node) {
  if (!program.library->api().program_time) throw CallError(DT_UNSUPPORTED, "[plug-in] this backend does not time its nodes");
  dt_node_time t{};
  t.struct_size = sizeof t;
  program.library->check(program.library->api().program_time(program.program, node, &t));
  return nb::make_tuple(t.runs, t.total, t.last_begin, t.last);
}

nb::tuple limits(const Device& device, int64_t bytes) {
  if (!device.library->api().device_limits) throw CallError(DT_UNSUPPORTED, "[plug-in] this backend does not know its limits");
  dt_limits l{};
  l.struct_size = sizeof l;
  dt_error* error = nullptr;
  {
    nb::gil_scoped_release release;
    error = device.library->api().device_limits(device.device, bytes, &l);
  }
  device.library->check(error);
  return nb::make_tuple(l.bytes_per_second, l.int8_per_second, l.f32_per_second);
}

nb::tuple cache_layout(const Program& program) {
  if (!program.library->api().cache_layout) throw CallError(DT_UNSUPPORTED, "[plug-in] this backend has no caches");
  dt_cache_layout l{};
  l.struct_size = sizeof l;
  program.library->check(program.library->api().cache_layout(program.program, &l));
  return nb::make_tuple(l.block_size, l.dtype, l.bytes_per_block, l.bytes_per_window_block, l.bytes_per_state);
}

std::shared_ptr<Cache> create_cache(std::shared_ptr<Program> program, int32_t blocks, int32_t window_blocks, int32_t states) {
  const dt_api& api = program->library->api();
  if (!api.cache_create) throw CallError(DT_UNSUPPORTED, "[plug-in] this backend has no caches");
  if (!api.cache_create_sized && (window_blocks || states))
    throw CallError(DT_UNSUPPORTED, "[plug-in] this backend keeps no windows of their own and no states");
  auto cache = std::make_shared<Cache>();
  cache->program = program;
  program->library->check(api.cache_create_sized
                              ? api.cache_create_sized(program->program, blocks, window_blocks, states, &cache->cache)
                              : api.cache_create(program->program, blocks, &cache->cache));
  return cache;
}

void copy_block(const Cache& cache, int32_t source, int32_t target) {
  const Library& library = *cache.program->library;
  library.check(library.api().cache_copy_block(cache.cache, source, target, nullptr));
}

void copy_state(const Cache& cache, int32_t source, int32_t target) {
  const Library& library = *cache.program->library;
  if (!library.api().cache_copy_state) throw CallError(DT_UNSUPPORTED, "[plug-in] this backend keeps no states");
  library.check(library.api().cache_copy_state(cache.cache, source, target, nullptr));
}

// The arrays must agree on T, S and R; their contents are the plug-in's to check.
dt_step make_step(const Numbers& ids, const Numbers& positions, const Numbers& query_starts, const Numbers& context_lens,
                  const Tables& block_tables, const Numbers& rows, const std::optional<Tables>& window_tables,
                  const std::optional<Slots>& state_slots) {
  if (positions.shape(0) != ids.shape(0))
    throw CallError(DT_INVALID, "[run] ids and positions of a step have the same length");
  const size_t sequences = context_lens.shape(0);
  if (query_starts.shape(0) != sequences + 1 || block_tables.shape(0) != sequences)
    throw CallError(DT_INVALID, "[run] a step of S sequences has S + 1 query_starts, S context_lens and S block tables");
  if ((window_tables && window_tables->shape(0) != sequences) || (state_slots && state_slots->shape(0) != sequences))
    throw CallError(DT_INVALID, "[run] a step of S sequences has S window tables and S state slots, where it has any");
  return {sizeof(dt_step),
          static_cast<int64_t>(ids.shape(0)),
          static_cast<int64_t>(sequences),
          static_cast<int64_t>(rows.shape(0)),
          ids.data(),
          positions.data(),
          query_starts.data(),
          context_lens.data(),
          block_tables.data(),
          static_cast<int64_t>(block_tables.shape(1)),
          rows.data(),
          window_tables ? window_tables->data() : nullptr,
          window_tables ? static_cast<int64_t>(window_tables->shape(1)) : 0,
          state_slots ? state_slots->data() : nullptr};
}

nb::list run(nb::handle self, const Numbers& ids, const Numbers& positions, const Numbers& query_starts,
             const Numbers& context_lens, const Tables& block_tables, const Numbers& rows, std::optional<Cache*> cache,
             const std::vector<Activation>& inputs, const std::optional<Tables>& window_tables,
             const std::optional<Slots>& state_slots) {
  Program& program = nb::cast<Program&>(self);
  if (cache && (*cache)->program.get() != &program) throw CallError(DT_INVALID, "[run] the cache belongs to another program");
  const dt_step step = make_step(ids, positions, query_starts, context_lens, block_tables, rows, window_tables, state_slots);
  std::vector<dt_tensor> in;
  for (const Activation& a : inputs)
    in.push_back({sizeof(dt_tensor), DT_F32, static_cast<int32_t>(a.ndim()), a.shape_ptr(), const_cast<float*>(a.data())});
  std::vector<dt_tensor> out(program.output_count, dt_tensor{sizeof(dt_tensor), 0, 0, nullptr, nullptr});
  dt_error* error = nullptr;
  {
    nb::gil_scoped_release release;
    std::lock_guard<std::mutex> lock(program.busy);
    error = program.library->api().run(program.program, cache ? (*cache)->cache : nullptr, &step, in.data(),
                                       static_cast<int32_t>(in.size()), out.data(), static_cast<int32_t>(out.size()), nullptr);
  }
  program.library->check(error);
  nb::list results;
  for (const dt_tensor& t : out) {
    if (t.dtype != DT_F32 || t.rank < 1 || t.rank > 8) throw CallError(DT_INTERNAL, "[run] the backend gave an output that is not f32");
    size_t shape[8];
    for (int32_t i = 0; i < t.rank; ++i) shape[i] = static_cast<size_t>(t.dims[i]);
    results.append(nb::ndarray<nb::numpy, float>(t.data, static_cast<size_t>(t.rank), shape, self));
  }
  return results;
}

// CallError carries (code, text), so that Python can choose its exception class.
void translate(const std::exception_ptr& p, void* type) {
  try {
    std::rethrow_exception(p);
  } catch (const CallError& e) {
    nb::object arguments = nb::make_tuple(static_cast<int>(e.code), e.what());
    PyErr_SetObject(static_cast<PyObject*>(type), arguments.ptr());
  }
}

}  // namespace

NB_MODULE(_native, m) {
  m.doc() = "Loads backend plug-ins (native/include/datong/backend.h) and calls them.";
  nb::exception<PluginMissing>(m, "PluginMissingError");
  nb::exception<PluginMismatch>(m, "PluginMismatchError");
  nb::object call_error = nb::exception<CallError>(m, "CallError");
  nb::register_exception_translator(translate, call_error.ptr());

  nb::class_<Library>(m, "Plugin", "A loaded plug-in; stays loaded until the process ends.")
      .def(nb::init<const std::string&>(), "path"_a)
      .def_prop_ro("name", [](const Library& l) { return l.api().name; })
      .def_prop_ro("version", [](const Library& l) { return nb::make_tuple(l.api().major, l.api().minor); })
      .def("devices", devices, "[(name, description, memory_bytes, attributes)]")
      .def("fusions", fusions)
      .def("supports", supports, "node"_a, "values"_a, "(yes, implementation or reason)")
      .def("open_device", open_device, "index"_a, "options"_a);
  nb::class_<Device>(m, "Device", nb::is_weak_referenceable()).def("compile", compile, "values"_a, "nodes"_a, "inputs"_a, "outputs"_a, "caches"_a,
                                      "arena_tokens"_a, "arena_rows"_a, "options"_a)
      .def("limits", limits, "bytes"_a, "(bytes, int8 operations, f32 operations) per second; 0: unknown");
  nb::class_<Program>(m, "Program")
      .def("node_implementation", node_implementation, "node"_a)
      .def("memory", memory, "(weights_mapped, weights_private, arena) in bytes")
      .def("profile", profile, "on"_a)
      .def("node_time", node_time, "node"_a, "(runs, total, last_begin, last) in nanoseconds")
      .def("cache_layout", cache_layout, "(block_size, dtype, bytes_per_block, bytes_per_window_block, bytes_per_state)")
      .def("create_cache", create_cache, "blocks"_a, "window_blocks"_a = 0, "states"_a = 0)
      .def("run", run, "ids"_a.noconvert(), "positions"_a.noconvert(), "query_starts"_a.noconvert(),
           "context_lens"_a.noconvert(), "block_tables"_a.noconvert(), "rows"_a.noconvert(), "cache"_a.none(),
           "inputs"_a.noconvert(), "window_tables"_a.noconvert().none() = nb::none(),
           "state_slots"_a.noconvert().none() = nb::none(), "outputs, each a view of the program's memory: valid until the next run");
  nb::class_<Cache>(m, "Cache")
      .def("copy_block", copy_block, "source"_a, "target"_a)
      .def("copy_state", copy_state, "source"_a, "target"_a);
}
