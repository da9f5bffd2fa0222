// Bytes inside the file are given out, everything else is an error with a sentence.
#include "core/mapped_file.h"

#include <cstdio>
#include <cstdlib>
#include <unistd.h>

#include "core/error.h"
#include "testing/check.h"

using namespace datong;

static std::string failure(const MappedFile& file, int64_t offset, int64_t length) {
  try {
    file.at(offset, length);
    return "";
  } catch (const Error& e) {
    return e.what();
  }
}

int main() {
  char path[] = "/tmp/datong_mapped_XXXXXX";
  const int fd = mkstemp(path);
  CHECK(fd >= 0 && write(fd, "0123456789", 10) == 10);
  close(fd);
  MappedFiles files;
  auto file = files.open(path);
  CHECK(files.open(path) == file, "one mapping per file");
  CHECK(file->size() == 10 && !std::memcmp(file->at(3, 4), "3456", 4));
  CHECK(failure(*file, 0, 10).empty() && failure(*file, 10, 0).empty());
  const int64_t huge = INT64_MAX;
  for (auto [offset, length] : {std::pair<int64_t, int64_t>{0, 11}, {11, 0}, {-1, 2}, {5, -1}, {huge, huge}, {1, huge}})
    CHECK(failure(*file, offset, length).find("10") != std::string::npos, "%lld %lld", static_cast<long long>(offset),
          static_cast<long long>(length));
  unlink(path);
  try {
    MappedFile missing("/nonexistent/weights");
    CHECK(false, "opened");
  } catch (const Error& e) {
    CHECK(e.code() == DT_IO && std::strstr(e.what(), "/nonexistent/weights"), "%s", e.what());
  }
  return testing::result();
}
