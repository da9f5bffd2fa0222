#include "plugin/library.h"

#include <algorithm>
#include <cstring>

#include <dlfcn.h>

namespace datong {
namespace {

struct Required {
  const char* name;
  bool present;
};

void check_table(const std::string& path, const dt_api& a) {
  const Required required[] = {
      {"name", a.name != nullptr},
      {"error_code", a.error_code != nullptr},
      {"error_message", a.error_message != nullptr},
      {"error_free", a.error_free != nullptr},
      {"device_count", a.device_count != nullptr},
      {"device_info", a.device_info != nullptr},
      {"device_open", a.device_open != nullptr},
      {"device_close", a.device_close != nullptr},
      {"supports", a.supports != nullptr},
      {"compile", a.compile != nullptr},
      {"program_free", a.program_free != nullptr},
      {"program_node", a.program_node != nullptr},
      {"program_memory", a.program_memory != nullptr},
      {"run", a.run != nullptr},
  };
  for (const Required& r : required)
    if (!r.present) throw PluginMismatch("plug-in `" + path + "` lacks the required function `" + r.name + "`");
  if (a.cache_create && (!a.cache_layout || !a.cache_free || !a.cache_copy_block))
    throw PluginMismatch("plug-in `" + path + "` has cache_create without cache_layout, cache_free and cache_copy_block");
}

}  // namespace

Library::Library(const std::string& path) : path_(path) {
  // RTLD_LOCAL: two plug-ins may carry different versions of one vendor library
  void* handle = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle) {
    const char* reason = ::dlerror();
    throw PluginMissing("plug-in `" + path + "` cannot be loaded: " + (reason ? reason : "unknown reason"));
  }
  auto get = reinterpret_cast<dt_get_api_fn>(::dlsym(handle, DT_ENTRY));
  if (!get) {
    ::dlclose(handle);
    throw PluginMissing("plug-in `" + path + "` does not export " DT_ENTRY);
  }
  const std::string ours = std::to_string(DT_API_MAJOR) + "." + std::to_string(DT_API_MINOR);
  const dt_api* theirs = get(DT_API_MAJOR, DT_API_MINOR);
  if (!theirs) throw PluginMismatch("plug-in `" + path + "` does not speak version " + ours + " of the backend interface");
  if (theirs->struct_size < offsetof(dt_api, name) + sizeof theirs->name)
    throw PluginMismatch("plug-in `" + path + "` has a function table of " + std::to_string(theirs->struct_size) + " bytes");
  if (theirs->major != DT_API_MAJOR)
    throw PluginMismatch("plug-in `" + path + "` speaks version " + std::to_string(theirs->major) + "." +
                         std::to_string(theirs->minor) + " of the backend interface, " + ours + " is wanted");
  std::memcpy(&api_, theirs, std::min(theirs->struct_size, sizeof api_));
  check_table(path, api_);
}

void Library::check(dt_error* error) const {
  if (!error) return;
  const dt_code code = api_.error_code(error);
  const char* message = api_.error_message(error);
  const std::string copy = message ? message : "no text";
  api_.error_free(error);
  throw CallError(code, copy);
}

}  // namespace datong
