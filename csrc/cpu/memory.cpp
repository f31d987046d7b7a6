#include "memory.h"

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <map>
#include <mutex>
#include <new>
#include <string>
#include <utility>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#define ABKD_KEEP_MEMORY 0  // a sanitizer wants to see every block come and go
#else
#define ABKD_KEEP_MEMORY 1
#endif

// In libtorch since 2.11; null before.
extern "C" __attribute__((weak)) AOTITorchError torch_from_blob(
    void* data, int64_t ndim, const int64_t* sizes, const int64_t* strides, int64_t storage_offset,
    int32_t dtype, int32_t device_type, int32_t device_index, AtenTensorHandle* result,
    int32_t layout, const uint8_t* opaque_metadata, int64_t opaque_metadata_size,
    void (*deleter)(void* data, void* context), void* context);

namespace abkd {
namespace {

constexpr int64_t kHugePage = 1 << 21;

// The next size of eight between powers of two, so that nearly equal sizes share their blocks.
int64_t rounded(int64_t bytes) {
  int64_t step = 64;
  while (step * 16 < bytes) {
    step *= 2;
  }
  return (bytes + step - 1) / step * step;
}

// The least of what a control group and those around it may have; `most` where none says.
int64_t least_limit(const std::string& mount, std::string group, const char* file, int64_t most) {
  for (bool inside = true; inside;) {
    std::ifstream limit(mount + group + "/" + file);  // a number, or "max"
    int64_t bytes = 0;
    if (limit >> bytes && bytes > 0) {
      most = std::min(most, bytes);
    }
    inside = !group.empty() && group != "/";
    group.erase(group.empty() ? 0 : group.rfind('/'));
  }
  return most;
}

// Of the machine, or what the control groups that this process is in may have.
int64_t total_memory() {
#if defined(_SC_PHYS_PAGES)
  const auto physical = static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE);
#else
  const int64_t physical = int64_t{1} << 33;
#endif
  int64_t least = physical;
  std::ifstream groups("/proc/self/cgroup");  // lines of number:controllers:path
  for (std::string line; std::getline(groups, line);) {
    const std::string path = line.substr(line.rfind(':') + 1);
    if (line.rfind("0::", 0) == 0) {
      least = least_limit("/sys/fs/cgroup", path, "memory.max", least);
    } else if (line.find(":memory:") != std::string::npos) {
      least = least_limit("/sys/fs/cgroup/memory", path, "memory.limit_in_bytes", least);
    }
  }
  return least;
}

// Processes of one job on this machine, as torchrun starts them.
int64_t local_processes() {
  const char* given = std::getenv("LOCAL_WORLD_SIZE");
  return std::max(1L, given == nullptr ? 1L : std::strtol(given, nullptr, 10));
}

class Pool {
 public:
  void* take(int64_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::vector<Kept>& blocks = free_[bytes];
    if (!blocks.empty()) {
      void* block = blocks.back().data;
      blocks.pop_back();
      kept_ -= bytes;
      return block;
    }
    void* block = from_system(bytes);
    if (block == nullptr) {
      release();
      block = from_system(bytes);
    }
    STD_TORCH_CHECK(block != nullptr, "out of memory: a result needs ", bytes, " bytes");
    reserved_ += bytes;
    return block;
  }

  void give(void* block, int64_t bytes) noexcept {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (bytes > limit_ || !keep(block, bytes)) {
      std::free(block);
      reserved_ -= bytes;
    }
    while (kept_ > limit_) {
      evict_oldest();
    }
  }

  void empty() {
    const std::lock_guard<std::mutex> lock(mutex_);
    release();
  }

  int64_t reserved() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return reserved_;
  }

  // Around a fork: a child's lock must not be held by a thread that it does not have.
  void lock() { mutex_.lock(); }
  void unlock() { mutex_.unlock(); }

 private:
  struct Kept {
    void* data;
    uint64_t given;  // when, counted in blocks
  };
  using OfSize = std::pair<const int64_t, std::vector<Kept>>;  // oldest first

  static void* from_system(int64_t bytes) {
    const bool huge = bytes >= 2 * kHugePage;
    const int64_t alignment = huge ? kHugePage : 64;
    void* block = std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
#if defined(MADV_HUGEPAGE)
    if (huge && block != nullptr) {
      madvise(block, bytes, MADV_HUGEPAGE);
    }
#endif
    return block;
  }

  bool keep(void* block, int64_t bytes) {
    try {
      free_[bytes].push_back({block, ++given_});
    } catch (const std::bad_alloc&) {
      return false;
    }
    kept_ += bytes;
    return true;
  }

  void evict_oldest() {
    const auto age = [](const OfSize& s) {
      return s.second.empty() ? UINT64_MAX : s.second[0].given;
    };
    const auto older = [&](const OfSize& a, const OfSize& b) { return age(a) < age(b); };
    auto& [bytes, blocks] = *std::min_element(free_.begin(), free_.end(), older);
    std::free(blocks[0].data);
    blocks.erase(blocks.begin());
    kept_ -= bytes;
    reserved_ -= bytes;
  }

  void release() {
    for (auto& [bytes, blocks] : free_) {
      std::for_each(blocks.begin(), blocks.end(), [](const Kept& block) { std::free(block.data); });
      reserved_ -= bytes * static_cast<int64_t>(blocks.size());
    }
    free_.clear();
    kept_ = 0;
  }

  std::mutex mutex_;
  std::map<int64_t, std::vector<Kept>> free_;
  int64_t kept_ = 0;
  uint64_t given_ = 0;
  int64_t reserved_ = 0;
  const int64_t limit_ = total_memory() / 4 / local_processes();
};

// Never destroyed: results may outlive everything else in the process.
Pool& pool() {
  static Pool* const only = [] {
    Pool* const made = new Pool;
#if defined(__unix__) || defined(__APPLE__)
    pthread_atfork([] { pool().lock(); }, [] { pool().unlock(); }, [] { pool().unlock(); });
#endif
    return made;
  }();
  return *only;
}

Tensor wrap(void* block, int64_t bytes, const std::vector<int64_t>& sizes, ScalarType dtype) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t dim = sizes.size(); dim-- > 1;) {
    strides[dim - 1] = strides[dim] * sizes[dim];
  }
  const auto give = [](void* data, void* context) {
    pool().give(data, reinterpret_cast<intptr_t>(context));
  };
  AtenTensorHandle handle;
  const AOTITorchError failed = torch_from_blob(
      block, static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), 0,
      to<int32_t>(from(dtype)), aoti_torch_device_type_cpu(), -1, &handle,
      aoti_torch_layout_strided(), nullptr, 0, give, reinterpret_cast<void*>(bytes));
  if (failed) {
    pool().give(block, bytes);
  }
  TORCH_ERROR_CODE_CHECK(failed);
  return Tensor(handle);
}

}  // namespace

Tensor empty_output(const std::vector<int64_t>& sizes, ScalarType dtype) {
  constexpr int64_t kMost = int64_t{1} << 62;  // rounded up, it still is a number
  int64_t bytes = bytes_of(dtype);
  const bool none = std::find(sizes.begin(), sizes.end(), 0) != sizes.end();
  for (const int64_t size : sizes) {
    STD_TORCH_CHECK(
        size >= 0 && (none || (!__builtin_mul_overflow(bytes, size, &bytes) && bytes <= kMost)),
        "sizes must be >= 0 and their bytes at most 2^62, got ", size);
  }
  if (!ABKD_KEEP_MEMORY || torch_from_blob == nullptr || none) {
    return torch::stable::empty(sizes, dtype);
  }
  bytes = rounded(bytes);
  return wrap(pool().take(bytes), bytes, sizes, dtype);
}

int64_t memory_reserved() { return pool().reserved(); }

void empty_cache() { pool().empty(); }

namespace {

template <typename Bits>
void transpose(const Tensor& x, const Tensor& out) {
  const Bits* from = static_cast<const Bits*>(x.data_ptr());
  Bits* to = static_cast<Bits*>(out.data_ptr());
  const int64_t rows = x.size(0), width = x.size(1);
  constexpr int64_t kTile = 16;  // rows of both sides stay in cache
  for (int64_t first = 0; first < rows; first += kTile) {
    const int64_t stop = std::min(first + kTile, rows);
    for (int64_t j = 0; j < width; ++j) {
      for (int64_t i = first; i < stop; ++i) {
        to[j * rows + i] = from[i * width + j];
      }
    }
  }
}

Tensor transposed_cpu(Tensor x) {
  check_matrix("x", x, x.scalar_type());
  feature_dtype("x", x);  // one of the four
  const Tensor input = as_contiguous(x);
  const Tensor out = empty_output({x.size(1), x.size(0)}, x.scalar_type());
  switch (bytes_of(x.scalar_type())) {
    case 8:
      transpose<uint64_t>(input, out);
      break;
    case 4:
      transpose<uint32_t>(input, out);
      break;
    default:
      transpose<uint16_t>(input, out);
  }
  return out;
}

Tensor empty_output_cpu(Tensor like, std::vector<int64_t> size) {
  return empty_output(size, like.scalar_type());
}

}  // namespace
}  // namespace abkd

STABLE_TORCH_LIBRARY_IMPL(abkd_fast, CPU, m) {
  m.impl("empty_output", TORCH_BOX(&abkd::empty_output_cpu));
  m.impl("transposed", TORCH_BOX(&abkd::transposed_cpu));
}
