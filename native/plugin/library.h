// Loads a backend plug-in: dlopen, the entry symbol, the checks of version and table. Knows no Python.
#pragma once

#include <memory>
#include <stdexcept>
#include <string>

#include "datong/backend.h"

namespace datong {

// The file cannot be loaded or is no plug-in.
struct PluginMissing : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The plug-in speaks another major version, or its table is incomplete.
struct PluginMismatch : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A call failed; `code` and text are the plug-in's.
struct CallError : std::runtime_error {
  dt_code code;
  CallError(dt_code c, const std::string& message) : std::runtime_error(message), code(c) {}
};

class Library {
 public:
  // Throws PluginMissing or PluginMismatch. The library stays loaded until the process ends: unloading code whose
  // threads or thread-local data may still live is not safe.
  explicit Library(const std::string& path);

  const dt_api& api() const { return api_; }  // functions that the plug-in's table does not cover are null
  const std::string& path() const { return path_; }

  // Throws CallError unless `error` is null; frees it.
  void check(dt_error* error) const;

 private:
  std::string path_;
  dt_api api_{};
};

}  // namespace datong
