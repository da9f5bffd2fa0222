// A file mapped read-only and shared: processes that use one package have its weights in memory once.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>

namespace datong {

class MappedFile {
 public:
  // Throws Error(DT_IO) if the file cannot be opened or mapped.
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  // Bytes [offset, offset + length). Throws Error(DT_INVALID) unless they lie in the file.
  const uint8_t* at(int64_t offset, int64_t length) const;
  int64_t size() const { return size_; }

  // Size, time of change and path: another text if the file is not the same any more. Empty if there is none.
  std::string identity() const { return identity(path_); }
  static std::string identity(const std::string& path);

  // Bytes [at, at + length), which `at()` gave, are not needed for now: their whole pages leave this process's memory, and
  // come back when they are read.
  void give_back(const uint8_t* at, int64_t length) const;

 private:
  std::string path_;
  const uint8_t* data_ = nullptr;
  int64_t size_ = 0;
};

// Maps each file once. The mappings live as long as anyone holds them.
class MappedFiles {
 public:
  std::shared_ptr<MappedFile> open(const std::string& path);

 private:
  std::map<std::string, std::shared_ptr<MappedFile>> files_;
};

}  // namespace datong
