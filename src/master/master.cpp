#include "master/master.h"

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <utility>

#include "base/logging.h"
#include "master/admin.h"
#include "master/coordinator.h"
#include "master/service.h"
#include "metadata/embedded_store.h"
#include "metadata/metadata_http_service.h"
#include "net/http_server.h"
#include "net/server.h"

namespace moonpool::master {

namespace {
constexpr std::chrono::milliseconds kSweepInterval{100};
// A nudged sweep comes at once, but not more often than this.
constexpr std::chrono::milliseconds kShortestSweepPause{2};
constexpr TimeMs kReportEveryMs = 60'000;

std::uint64_t wall_clock_ms() {
  return static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::system_clock::now().time_since_epoch()).count());
}

net::ServerOptions server_options(const MasterConfig& config) {
  net::ServerOptions options;
  options.host = config.host;
  options.port = config.port;
  options.threads = config.threads;
  return options;
}

net::Identity identity_of(const MasterConfig& config) {
  net::Identity identity;
  identity.node_id = NodeId::generate();
  identity.token = config.cluster_token;
  return identity;
}
}  // namespace

class Master::Impl {
 public:
  explicit Impl(const MasterConfig& config)
      : config_(config),
        coordinator_(config, now_ms(), wall_clock_ms()),
        service_(coordinator_, [this] { nudge(); }),
        admin_(coordinator_),
        metadata_service_(metadata_store_),
        server_(identity_of(config), server_options(config)) {}
  ~Impl() { stop(); }

  Status start() {
    // The pages first: when the wire's port answers, they do too.
    auto admin = net::HttpServer::start({.host = config_.metrics_host, .port = config_.metrics_port},
                                        [this](const net::HttpRequest& request) { return admin_.serve(request); });
    if (!admin.ok()) return with_flag(admin.status(), "--metrics_host and --metrics_port");
    admin_server_ = std::move(*admin);
    if (config_.enable_http_metadata_server) {
      auto metadata = net::HttpServer::start({.host = config_.http_metadata_server_host, .port = config_.http_metadata_server_port},
                                             [this](const net::HttpRequest& request) { return metadata_service_(request); });
      if (!metadata.ok()) return with_flag(metadata.status(), "--http_metadata_server_host and --http_metadata_server_port");
      metadata_server_ = std::move(*metadata);
    }
    service_.install(server_);
    if (auto status = server_.start(); !status.ok()) return with_flag(status, "--rpc_address and --port");
    sweeper_ = std::thread([this] { sweep_until_stopped(); });
    return {};
  }

  void stop() {
    {
      const std::scoped_lock lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    if (sweeper_.joinable()) sweeper_.join();
    service_.end();
    server_.stop();
    if (admin_server_) admin_server_->stop();
    if (metadata_server_) metadata_server_->stop();
  }

  void nudge() {
    {
      const std::scoped_lock lock(mutex_);
      if (nudged_) return;
      nudged_ = true;
    }
    wake_.notify_all();
  }

  [[nodiscard]] std::uint16_t port() const { return server_.port(); }
  [[nodiscard]] std::uint16_t metrics_port() const { return admin_server_ ? admin_server_->port() : 0; }
  [[nodiscard]] std::uint16_t metadata_port() const { return metadata_server_ ? metadata_server_->port() : 0; }
  [[nodiscard]] Coordinator& coordinator() { return coordinator_; }

 private:
  static Status with_flag(const Status& status, const std::string& flags) {
    return {status.code(), status.message() + " (set by " + flags + ")"};
  }

  void sweep_until_stopped() {
    auto next_report = now_ms() + kReportEveryMs;
    std::unique_lock lock(mutex_);
    while (!stopping_) {
      wake_.wait_for(lock, kShortestSweepPause, [this] { return stopping_; });
      wake_.wait_for(lock, kSweepInterval, [this] { return stopping_ || nudged_; });
      nudged_ = false;
      if (stopping_) return;
      lock.unlock();
      coordinator_.sweep(now_ms());
      if (config_.metric_reporting && now_ms() >= next_report) {
        log::info("{}", admin_.summary_line());
        next_report = now_ms() + kReportEveryMs;
      }
      lock.lock();
    }
  }

  const MasterConfig config_;
  Coordinator coordinator_;
  Service service_;
  Admin admin_;
  metadata::EmbeddedStore metadata_store_;
  metadata::MetadataHttpService metadata_service_;
  net::Server server_;
  std::unique_ptr<net::HttpServer> admin_server_;
  std::unique_ptr<net::HttpServer> metadata_server_;
  std::mutex mutex_;  // guards stopping_ and nudged_
  std::condition_variable wake_;
  bool stopping_ = false;
  bool nudged_ = false;
  std::thread sweeper_;
};

Result<std::unique_ptr<Master>> Master::start(MasterConfig config) {
  auto impl = std::make_unique<Impl>(config);
  if (auto status = impl->start(); !status.ok()) return status;
  return std::unique_ptr<Master>(new Master(std::move(impl)));
}

Master::Master(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Master::~Master() = default;
std::uint16_t Master::port() const { return impl_->port(); }
std::uint16_t Master::metrics_port() const { return impl_->metrics_port(); }
std::uint16_t Master::metadata_port() const { return impl_->metadata_port(); }
void Master::stop() { impl_->stop(); }
Coordinator& Master::coordinator() { return impl_->coordinator(); }

}  // namespace moonpool::master
