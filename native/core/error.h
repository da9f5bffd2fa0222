// The one exception of the native code. It never leaves the library: plugin_cpu turns it into a dt_error.
#pragma once

#include <exception>
#include <string>

#include "datong/backend.h"

namespace datong {

class Error : public std::exception {
 public:
  Error(dt_code code, std::string message) : code_(code), message_(std::move(message)) {}
  dt_code code() const { return code_; }
  const char* what() const noexcept override { return message_.c_str(); }

 private:
  dt_code code_;
  std::string message_;
};

// printf-style text.
[[gnu::format(printf, 1, 2)]] std::string text(const char* format, ...);

}  // namespace datong
