#include "core/error.h"

#include <cstdarg>
#include <cstdio>

namespace datong {

std::string text(const char* format, ...) {
  char buffer[1024];  // our sentences are shorter; a longer name is cut
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(buffer, sizeof buffer, format, arguments);
  va_end(arguments);
  return buffer;
}

}  // namespace datong
