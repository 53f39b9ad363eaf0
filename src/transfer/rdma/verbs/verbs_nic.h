// A NIC on libibverbs: one port of one device, opened for this process.
//
// Its asynchronous events (port up or down, addresses changed, queue pair or device broken) are heard by the event thread, which keeps up()
// and calls the watcher. After a fatal error of the device (removed, its firmware restarted) this process's handle on it is dead: it stays
// down until the process opens it anew. Threads: any. Ownership: outlives its registrations and queue pairs.
#pragma once

#include <infiniband/verbs.h>

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "transfer/rdma/nic.h"
#include "transfer/rdma/options.h"
#include "transfer/rdma/verbs/connection_manager.h"
#include "transfer/rdma/verbs/event_thread.h"
#include "transfer/rdma/verbs/port.h"

namespace moonpool::transfer::rdma {

// A device that is open, with what could be learned of it. Closes it at the end.
class OpenDevice {
 public:
  [[nodiscard]] static Result<std::unique_ptr<OpenDevice>> open(const Verbs& verbs, ibv_device* device, std::uint32_t port);
  ~OpenDevice();
  OpenDevice(const OpenDevice&) = delete;
  OpenDevice& operator=(const OpenDevice&) = delete;

  [[nodiscard]] Port& port() { return port_; }
  [[nodiscard]] const Port& port() const { return port_; }
  [[nodiscard]] bool active() const;
  [[nodiscard]] std::vector<Gid> gids() const;
  // Makes it ready for queue pairs of so many work requests; info() then says what they can be. kUnavailable, kNotSupported.
  Status prepare(std::uint32_t work_requests);

  std::string firmware;
  std::string state;  // of the port
  std::string rate;

 private:
  explicit OpenDevice(const Verbs& verbs) { port_.verbs = &verbs; }
  Status describe(std::uint32_t port);
  Status find_queue_pair_limits(std::uint32_t work_requests);
  bool try_queue_pair(std::uint32_t work_requests, std::uint32_t pieces) const;

  std::size_t port_count_ = 1;
  Port port_;
};

class VerbsNic final : public Nic {
 public:
  explicit VerbsNic(std::unique_ptr<OpenDevice> device);  // prepared
  ~VerbsNic() override;
  VerbsNic(const VerbsNic&) = delete;
  VerbsNic& operator=(const VerbsNic&) = delete;

  [[nodiscard]] const NicInfo& info() const override { return device_->port().info; }
  [[nodiscard]] bool up() const override { return up_.load(std::memory_order_acquire); }
  void watch(std::function<void()> changed) override;
  [[nodiscard]] Result<std::unique_ptr<Registration>> register_memory(MutableBytes memory, Access access) override;
  [[nodiscard]] Result<std::unique_ptr<Registration>> register_dma_buf(MutableBytes memory, const DmaBuf& buffer, Access access) override;
  [[nodiscard]] Result<std::unique_ptr<QueuePair>> make_queue_pair(const QueuePairOptions& options) override;
  [[nodiscard]] std::vector<Gid> gids() const override { return device_->gids(); }

 private:
  bool handle_events();
  void refresh();
  Result<ConnectionManager*> connection_manager();

  std::unique_ptr<OpenDevice> device_;
  std::shared_ptr<EventThread> events_ = EventThread::shared();
  std::atomic<bool> up_{false};
  std::atomic<bool> dead_{false};
  std::mutex watch_mutex_;
  std::function<void()> changed_;
  std::mutex manager_mutex_;
  std::unique_ptr<ConnectionManager> manager_;
};

}  // namespace moonpool::transfer::rdma
