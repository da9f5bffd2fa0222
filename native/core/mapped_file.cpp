#include "core/mapped_file.h"

#include <cerrno>
#include <cstring>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/error.h"

namespace datong {

MappedFile::MappedFile(const std::string& path) : path_(path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) throw Error(DT_IO, text("[cpu] weight file `%s` cannot be opened: %s", path.c_str(), strerror(errno)));
  struct stat info;
  const char* failed = nullptr;
  if (::fstat(fd, &info) != 0) {
    failed = strerror(errno);
  } else if (!S_ISREG(info.st_mode)) {
    failed = "not an ordinary file";
  } else if (info.st_size > 0) {
    void* p = ::mmap(nullptr, static_cast<size_t>(info.st_size), PROT_READ, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED) {
      failed = strerror(errno);
    } else {
      data_ = static_cast<const uint8_t*>(p);
      size_ = info.st_size;
    }
  }
  ::close(fd);
  if (failed) throw Error(DT_IO, text("[cpu] weight file `%s` cannot be mapped: %s", path.c_str(), failed));
}

MappedFile::~MappedFile() {
  if (data_) ::munmap(const_cast<uint8_t*>(data_), static_cast<size_t>(size_));
}

const uint8_t* MappedFile::at(int64_t offset, int64_t length) const {
  if (offset < 0 || length < 0 || offset > size_ || length > size_ - offset)
    throw Error(DT_INVALID, text("[cpu] weight bytes %lld + %lld were wanted, `%s` has %lld",
                                 static_cast<long long>(offset), static_cast<long long>(length), path_.c_str(),
                                 static_cast<long long>(size_)));
  return data_ + offset;
}

std::string MappedFile::identity(const std::string& path) {
  struct stat info;
  if (::stat(path.c_str(), &info) != 0) return {};
  return text("%lld %lld.%09ld ", static_cast<long long>(info.st_size), static_cast<long long>(info.st_mtim.tv_sec), info.st_mtim.tv_nsec) + path;
}

void MappedFile::give_back(const uint8_t* at, int64_t length) const {
  const auto page = static_cast<int64_t>(::sysconf(_SC_PAGESIZE));  // the mapping begins at one
  const int64_t begin = (at - data_ + page - 1) / page * page, end = (at - data_ + length) / page * page;
  if (begin < end) ::madvise(const_cast<uint8_t*>(data_) + begin, static_cast<size_t>(end - begin), MADV_DONTNEED);
}

std::shared_ptr<MappedFile> MappedFiles::open(const std::string& path) {
  auto& file = files_[path];
  if (!file) file = std::make_shared<MappedFile>(path);
  return file;
}

}  // namespace datong
