// NICs in this process, for tests: the contract of nic.h carried out by copying memory, with faults on command.
//
// A fabric has networks, numbered; NICs of one network reach each other. Each queue pair that sends has a thread, which carries out its
// work requests in order and in steps of 4 KiB, so that a fault, a fence or a gate can fall between any two of them. What the contract
// promises is kept strictly: a completion frees the places of all work requests before it and no sooner; an event comes only after arm(); a
// queue pair or registration that is being destroyed waits for the step under way, and none follows. Local and remote keys differ, and a
// queue pair accepts only the peer that it was connected with, by number, first packet and GID, so that a mix-up is found here.
//
// A real NIC is no thread of the program: a peer may read or write memory that its owner uses already, which the store's rules allow,
// because checksums find it. ThreadSanitizer would call that a data race, so its builds do the copying unseen by it
// (simulated_queue_pair.cpp).
//
// A dma-buf is any file that can be mapped (a fake GPU's, cuda/fake/), which begins at the file's position: the NIC maps it and works
// there, so that the addresses of device memory are never touched.
//
// Threads: any. Ownership: the fabric's state lives as long as the fabric, a NIC or a queue pair; commands name NICs, whose names are
// unique.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <string>

#include "base/deadline.h"
#include "transfer/rdma/nic.h"

namespace moonpool::transfer::rdma {

struct SimulatedNicSettings {
  std::uint8_t network = 0;  // 10.0.<network>.0/24
  std::int32_t numa_node = -1;
  bool iwarp = false;  // connected by tickets, reads of one piece, a refused key ends the connection
  std::uint32_t max_work_requests = 256;
  std::uint32_t max_pieces = 30;
  std::uint32_t max_read_pieces = 30;
  std::uint64_t max_message = std::uint64_t{1} << 30;
  bool dma_buf = true;  // reaches the memory of devices
};

// Holds one work request in its midst until a test opens it.
class SimulatedGate {
 public:
  virtual ~SimulatedGate() = default;
  // True once the work request is held there.
  [[nodiscard]] virtual bool await_reached(Deadline deadline) = 0;
  virtual void open() = 0;
};

class SimulatedFabric {
 public:
  struct Counts {
    std::uint64_t doorbells = 0;
    std::uint64_t work_requests = 0;  // carried out
    std::uint64_t bytes = 0;          // moved by them, and by failed ones
    std::uint64_t registrations = 0;  // made so far
    std::uint64_t registered = 0;     // there are now
    std::uint64_t dma_bufs = 0;       // of these, memory of devices
    std::uint64_t queue_pairs = 0;    // there are now
  };

  SimulatedFabric();
  ~SimulatedFabric();

  [[nodiscard]] std::unique_ptr<Nic> make_nic(const std::string& name, const SimulatedNicSettings& settings = {});
  [[nodiscard]] Counts counts(const std::string& nic) const;

  void set_port(const std::string& nic, bool up);
  // The cable between two NICs; both ports stay up.
  void cut(const std::string& one, const std::string& other);
  void mend(const std::string& one, const std::string& other);
  // The NIC fails, with its port up, at the n-th work request (from 1) of peers from now on, or after so many bytes of such.
  void fail_at_work_request(const std::string& nic, std::uint64_t n);
  void fail_after_bytes(const std::string& nic, std::uint64_t bytes);
  void revive(const std::string& nic);
  // The n-th work request (from 1) that this NIC starts from now on is held after so many of its bytes.
  [[nodiscard]] std::shared_ptr<SimulatedGate> hold(const std::string& nic, std::uint64_t n, std::uint64_t bytes = 0);
  // No memory can be locked; no queue pair can be made.
  void refuse_registrations(const std::string& nic, bool refuse);
  void refuse_queue_pairs(const std::string& nic, bool refuse);

  class State;

 private:
  std::shared_ptr<State> state_;
};

}  // namespace moonpool::transfer::rdma
