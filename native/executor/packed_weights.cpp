#include "executor/packed_weights.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <map>
#include <new>

#include "core/error.h"

namespace datong {
namespace {

constexpr const char* kOurs = "datong packed weights ";
constexpr const char* kVersion = "datong packed weights 2\n";  // of the file and of the kernels' layouts: raise it with either
constexpr const char* kTemporary = ".packing-";  // and six letters
constexpr int64_t kLeast = 1 << 20;  // bytes below which a file is not worth it
constexpr int64_t kJob = 1 << 20;    // bytes that a thread packs at a time: as much is in memory twice

int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Where the matrices begin behind a key.
int64_t data_offset(const std::string& key) { return round_up(static_cast<int64_t>(key.size()) + 1, 4096); }

std::string name_of(const std::string& key) {
  uint64_t hash = 14695981039346656037u;  // FNV-1a; the key itself is compared too
  for (const char c : key) hash = (hash ^ static_cast<uint8_t>(c)) * 1099511628211u;
  return text("%016llx.packed", static_cast<unsigned long long>(hash));
}

// What can be had without swapping, in bytes; without a limit where the system does not say.
int64_t available_memory() {
  std::FILE* file = std::fopen("/proc/meminfo", "r");
  if (!file) return INT64_MAX;
  char line[128];
  long long kib = 0;
  bool found = false;
  while (!found && std::fgets(line, sizeof line, file)) found = std::sscanf(line, "MemAvailable: %lld kB", &kib) == 1;
  std::fclose(file);
  return found ? kib << 10 : INT64_MAX;
}

bool write_all(int file, const void* data, int64_t size, int64_t offset) {
  const auto* at = static_cast<const uint8_t*>(data);
  while (size > 0) {
    const ssize_t n = ::pwrite(file, at, static_cast<size_t>(size), offset);
    if (n <= 0) return false;
    at += n, offset += n, size -= n;
  }
  return true;
}

// Is the file at `path` one of ours, but of another version, or of weights that are no longer there or have changed?
bool is_stale(const std::filesystem::path& path) {
  std::FILE* file = std::fopen(path.c_str(), "r");
  if (!file) return false;
  char line[4608];
  const bool ours = std::fgets(line, sizeof line, file) && std::strncmp(line, kOurs, std::strlen(kOurs)) == 0;
  bool stale = ours && std::strcmp(line, kVersion) != 0;
  while (ours && !stale && std::fgets(line, sizeof line, file) && std::strncmp(line, "file ", 5) == 0) {
    line[std::strcspn(line, "\n")] = '\0';
    const char* source = line + 5;  // behind size and time
    for (int words = 0; source && words < 2; ++words) source = std::strchr(source, ' ') ? std::strchr(source, ' ') + 1 : nullptr;
    stale = !source || MappedFile::identity(source) != line + 5;
  }
  std::fclose(file);
  return stale;
}

// Also what a process that was killed left half written.
void remove_stale(const std::string& directory) {
  namespace fs = std::filesystem;
  std::error_code failed;
  const auto yesterday = fs::file_time_type::clock::now() - std::chrono::hours(24);
  for (const auto& entry : fs::directory_iterator(directory, failed)) {
    const bool half = entry.path().filename().string().rfind(kTemporary, 0) == 0 && entry.last_write_time(failed) < yesterday;
    if (half || (entry.path().extension() == ".packed" && is_stale(entry.path()))) fs::remove(entry.path(), failed);
  }
}

struct AlignedDelete {
  void operator()(uint8_t* p) const { ::operator delete[](p, std::align_val_t{64}); }
};

}  // namespace

// Where packed bytes go: to memory, or to a file by way of a buffer.
struct PackedWeights::Sink {
  uint8_t* memory = nullptr;
  int file = -1;
  int64_t offset = 0;  // of the first matrix in the file
  std::atomic<bool>* failed = nullptr;
};

PackedWeights::~PackedWeights() {
  if (memory_) ::munmap(memory_, static_cast<size_t>(bytes_));
}

const uint8_t* const* PackedWeights::want(const LinearKernel& kernel, const Weight& weight) {
  for (const Item& item : items_)
    if (item.view.codes == weight.view.codes && item.kernel == &kernel) return &item.at;
  const auto bytes = static_cast<int64_t>(kernel.packed_bytes(weight.view));
  items_.push_back({&kernel, weight.view, weight.pieces, weight.bytes, bytes, bytes_, nullptr});
  bytes_ += round_up(bytes, 64);
  return &items_.back().at;
}

const PackedWeights::Reader* PackedWeights::read(const Weight& weight) {
  readers_.push_back({weight.view.codes});
  return &readers_.back();
}

int64_t PackedWeights::original_bytes() const {
  std::map<const uint8_t*, int64_t> by_codes;
  for (const Item& item : items_) by_codes[item.view.codes] = item.original;
  int64_t sum = 0;
  for (const auto& [codes, bytes] : by_codes) sum += bytes;
  return sum;
}

std::string PackedWeights::key() const {
  std::string files, matrices;
  std::vector<const MappedFile*> seen;
  for (const Item& item : items_) {
    matrices += text("matrix %s %lld %lld", item.kernel->name, static_cast<long long>(item.view.out), static_cast<long long>(item.view.in));
    for (const Weight::Piece& piece : item.pieces) {
      auto at = std::find(seen.begin(), seen.end(), piece.file.get());
      if (at == seen.end()) {
        files += "file " + piece.file->identity() + "\n";
        at = seen.insert(seen.end(), piece.file.get());
      }
      matrices += text(" %lld:%lld", static_cast<long long>(at - seen.begin()), static_cast<long long>(piece.at - piece.file->at(0, 0)));
    }
    matrices += "\n";
  }
  return kVersion + files + matrices;
}

void PackedWeights::make(const std::string& directory, ThreadPool& pool) {
  if (items_.empty()) return;
  bool in_file = false;
  if (!directory.empty() && bytes_ >= kLeast) {
    const std::string wanted = key(), path = directory + "/" + name_of(wanted);
    in_file = find(path, wanted) || (write(directory, path, wanted, pool) && find(path, wanted));
  }
  if (!in_file) pack_to_memory(pool);
  for (Reader& reader : readers_)
    for (const Item& item : items_)
      if (item.view.codes == reader.codes) reader.kernel = item.kernel, reader.packed = item.at;
}

bool PackedWeights::find(const std::string& path, const std::string& key) {
  try {
    auto file = std::make_unique<MappedFile>(path);
    const int64_t begin = data_offset(key), length = static_cast<int64_t>(key.size()) + 1;
    if (file->size() != begin + bytes_ || std::memcmp(file->at(0, length), key.c_str(), static_cast<size_t>(length)) != 0) return false;
    for (Item& item : items_) item.at = file->at(begin + item.offset, item.bytes);
    file_ = std::move(file);
    return true;
  } catch (const Error&) {
    return false;
  }
}

// Under another name first, so that no half file is ever found. False: it cannot be written.
bool PackedWeights::write(const std::string& directory, const std::string& path, const std::string& key, ThreadPool& pool) const {
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  remove_stale(directory);
  std::string temporary = directory + "/" + kTemporary + "XXXXXX";
  const int file = ::mkstemp(temporary.data());
  if (file < 0) return false;
  std::atomic<bool> failed{::ftruncate(file, data_offset(key) + bytes_) != 0};
  if (!failed && !write_all(file, key.c_str(), static_cast<int64_t>(key.size()) + 1, 0)) failed = true;
  Sink sink;
  sink.file = file;
  sink.offset = data_offset(key);
  sink.failed = &failed;
  if (!failed) pack(sink, pool);
  if (!failed && ::fdatasync(file) != 0) failed = true;  // or a power cut leaves the name and not the content
  if (::close(file) != 0) failed = true;
  if (!failed && std::rename(temporary.c_str(), path.c_str()) == 0) return true;
  ::unlink(temporary.c_str());
  return false;
}

void PackedWeights::pack_to_memory(ThreadPool& pool) {
  if (bytes_ > available_memory())
    throw Error(DT_OUT_OF_MEMORY, text("[cpu] weights are copied into the layout of the kernels: %lld MiB are wanted, %lld MiB are "
                                       "available; with the option weights=mapped they stay in their file",
                                       static_cast<long long>(bytes_ >> 20), static_cast<long long>(available_memory() >> 20)));
  void* at = ::mmap(nullptr, static_cast<size_t>(bytes_), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) throw Error(DT_OUT_OF_MEMORY, text("[cpu] no memory for %lld MiB of packed weights", static_cast<long long>(bytes_ >> 20)));
  memory_ = static_cast<uint8_t*>(at);
  Sink sink;
  sink.memory = memory_;
  pack(sink, pool);
  for (Item& item : items_) item.at = memory_ + item.offset;
}

// Threads take jobs in turn: rows of one matrix.
void PackedWeights::pack(const Sink& sink, ThreadPool& pool) const {
  struct Job {
    const Item& item;
    int64_t begin, end;    // rows
    int64_t offset, size;  // of what they become
  };
  std::vector<Job> jobs;
  int64_t most = 0;  // bytes of a job
  for (const Item& item : items_) {
    const int64_t multiple = item.kernel->out_multiple, units = (item.view.out + multiple - 1) / multiple;
    const int64_t unit = item.bytes / units, each = std::max<int64_t>(1, kJob / unit);
    for (int64_t u = 0; u < units; u += each) {
      const int64_t end = std::min(u + each, units);
      jobs.push_back({item, u * multiple, std::min(end * multiple, item.view.out), item.offset + u * unit, (end - u) * unit});
      most = std::max(most, jobs.back().size);
    }
  }
  std::vector<std::unique_ptr<uint8_t[], AlignedDelete>> buffers;
  for (int i = 0; i < pool.size() && !sink.memory; ++i) buffers.emplace_back(new (std::align_val_t{64}) uint8_t[static_cast<size_t>(most)]);
  std::atomic<size_t> next{0};
  pool.run([&](Team& team) {
    for (size_t i; (i = next.fetch_add(1)) < jobs.size() && !(sink.failed && *sink.failed);) {
      const Job& job = jobs[i];
      const int64_t rows = job.end - job.begin;
      uint8_t* to = sink.memory ? sink.memory + job.offset : buffers[static_cast<size_t>(team.index())].get();
      job.item.kernel->pack(rows_of(job.item.view, job.begin, rows), 0, rows, to);
      if (!sink.memory && !write_all(sink.file, to, job.size, sink.offset + job.offset)) *sink.failed = true;
      for (const Weight::Piece& piece : job.item.pieces) {
        const int64_t row = piece.bytes / job.item.view.out;
        piece.file->give_back(piece.at + row * job.begin, row * rows);
      }
    }
  });
}

}  // namespace datong
