// CUDA in this process: found when somebody else has loaded it, since who has device pointers has the driver.
//
// of_process() costs one atomic load once it was found, and nothing but a look at the loaded libraries before (a stat of /dev once, where
// there is no NVIDIA device). Threads: any. Lifetime: the process's; tests make runtimes of their own with a fake driver.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "transfer/cuda/copier/copier.h"
#include "transfer/cuda/driver/driver.h"
#include "transfer/cuda/host_regions.h"
#include "transfer/cuda/settings.h"
#include "transfer/cuda/staging.h"

namespace moonpool::transfer::cuda {

class Runtime {
 public:
  Runtime(std::unique_ptr<Driver> driver, const Settings& settings);
  ~Runtime();

  // Null while libcuda.so.1 is not loaded, or after it failed to start (said once in the log; why() tells).
  [[nodiscard]] static Runtime* of_process();
  // Why there is none, for people: "libcuda.so.1 is not loaded in this process", "cuInit: CUDA_ERROR_NO_DEVICE".
  [[nodiscard]] static std::string why();
  // For tests: what of_process() gives from now on; null for the real one again. The caller keeps it.
  static void replace_for_test(Runtime* runtime);

  // Which device an address of memory belongs to; nullopt for host memory. Ranges that were remembered cost a look into a small table,
  // others a call of the driver's.
  [[nodiscard]] std::optional<int> device_of(const void* address) const;
  // The same for many addresses, with one lock for all of them and a guess for each: rows of pieces, as a paged cache has them, lie row
  // after row in the same buffers. Registering waits while one lives.
  class LookUp {
   public:
    explicit LookUp(const Runtime& runtime);
    ~LookUp();
    LookUp(const LookUp&) = delete;
    LookUp& operator=(const LookUp&) = delete;
    void begin_row() { place_ = 0; }
    [[nodiscard]] std::optional<int> device_of(const void* address);

   private:
    const Runtime& runtime_;
    std::vector<std::uint32_t> guesses_;  // by place in the row: the range where the piece there was found last
    std::size_t place_ = 0;
  };
  // Remembers where a registered buffer lies, until forget().
  void remember(ConstBytes range);
  void forget(const void* address);

  [[nodiscard]] Driver& driver() { return *driver_; }
  [[nodiscard]] HostRegions& regions() { return regions_; }
  [[nodiscard]] Copier& copier() { return copier_; }
  [[nodiscard]] Staging& staging() { return staging_; }
  [[nodiscard]] const Settings& settings() const { return settings_; }

 private:
  class Ranges;
  const Settings settings_;
  const std::unique_ptr<Driver> driver_;
  HostRegions regions_;
  Staging staging_;
  Copier copier_;
  std::unique_ptr<Ranges> ranges_;
};

}  // namespace moonpool::transfer::cuda
