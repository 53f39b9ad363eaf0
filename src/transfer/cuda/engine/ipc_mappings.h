// Device memory of other processes of this host, mapped into this one (CUDA IPC).
//
// An allocation is opened once for each device of ours that it is opened on, and kept while its owner's incarnation lives: a mapping
// is closed, once nobody uses it, when another incarnation answers at the owner's endpoint, when the owner offers its handle no longer
// (seen when something else of it is opened), on forget(), and for owners that have not been used for longest beyond kMostOwners. What
// could not be opened is not tried again before kTryAgain. Threads: any. Lifetime: the driver outlives it, and the mappings it gives.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "base/deadline.h"
#include "base/ids.h"
#include "net/endpoint.h"
#include "transfer/cuda/driver/driver.h"
#include "transfer/segment_directory.h"

namespace moonpool::transfer::cuda {

class IpcMappings {
 public:
  static constexpr std::size_t kMostOwners = 256;
  static constexpr std::chrono::seconds kTryAgain{60};

  // Open until its end.
  class Mapping {
   public:
    Mapping(Driver& driver, int device, std::uint64_t address) : driver_(driver), device_(device), address_(address) {}
    ~Mapping() { driver_.close_ipc(device_, address_); }
    Mapping(const Mapping&) = delete;
    Mapping& operator=(const Mapping&) = delete;
    [[nodiscard]] std::uint64_t address() const { return address_; }  // of the whole allocation

   private:
    Driver& driver_;
    const int device_;
    const std::uint64_t address_;
  };
  using Use = std::shared_ptr<const Mapping>;

  // What the owner exports by this handle, opened on `device`. Errors are the driver's.
  [[nodiscard]] Result<Use> open(Driver& driver, const RemoteSegment& owner, const std::string& handle, int device);
  void forget(const Incarnation& owner);
  void clear();
  [[nodiscard]] std::size_t size() const;  // mappings that are kept

 private:
  using Key = std::pair<int, std::string>;  // device and handle
  struct Attempt {
    Result<Use> use;
    Deadline try_again;  // of one that failed
  };
  struct Owner {
    net::Endpoint endpoint;
    std::uint64_t last_used = 0;
    std::map<Key, Attempt> mappings;
  };
  void make_room();

  mutable std::mutex mutex_;  // guards what follows; held while one is opened, so that none is opened twice
  std::uint64_t uses_ = 0;
  std::map<Incarnation, Owner> owners_;
};

}  // namespace moonpool::transfer::cuda
