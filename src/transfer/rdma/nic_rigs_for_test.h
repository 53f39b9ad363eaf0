// The NICs on which nic_conformance_test.cpp runs. Used by tests alone.
#pragma once

#include <functional>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "transfer/rdma/nic.h"

namespace moonpool::transfer::rdma {

// Two NICs that reach each other; one may be both.
class Rig {
 public:
  virtual ~Rig() = default;
  virtual Nic& user() = 0;
  virtual Nic& owner() = 0;
  // Whether a key that is refused comes as kRefused or kLocal; else it may be the connection's end (iWARP, RFC 5040).
  virtual bool refusal_is_told() { return !user().info().iwarp; }
  // Whether queue pairs are connected through rdma_cm although these NICs can do without.
  virtual bool connection_manager() const { return false; }
  // Whether its NICs reach the memory of devices, of which a file in memory is one.
  virtual bool takes_dma_bufs() const { return false; }
  // The cable of the owner's NIC.
  virtual bool can_cut() const { return false; }
  virtual void cut() {}
  virtual void mend() {}  // returns when it can be used again
  // Where it can be arranged: the user's next work request gets no further, so that what follows it is surely outstanding.
  virtual void stall() {}
  // Whether work fails while it is cut (a software NIC's own loopback needs no cable).
  virtual bool traffic_needs_the_link() const { return true; }
};

struct RigCase {
  std::string name;
  // Null where the hardware is missing: the tests are skipped, saying so.
  std::function<Result<std::unique_ptr<Rig>>()> make;
  std::string missing;
};

inline void PrintTo(const RigCase& one, std::ostream* out) { *out << one.name; }

std::vector<RigCase> rig_cases();

// In this process (simulated_nic.h).
std::vector<RigCase> simulated_rig_cases();

// On libibverbs: the devices that MOONPOOL_TEST_RDMA_DEVICES names ("rxe0,rxe1": the first is the user's, the last the owner's; one name is
// both). With MOONPOOL_TEST_RDMA_CUT=1 the owner's network interface may be taken down for a moment.
std::vector<RigCase> verbs_rig_cases();

}  // namespace moonpool::transfer::rdma
