#include "gateway/gateway.h"

#include <algorithm>
#include <boost/asio/basic_socket_acceptor.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/post.hpp>
#include <optional>
#include <thread>
#include <vector>

#include "base/deadline.h"
#include "base/logging.h"
#include "gateway/gateway_state.h"
#include "gateway/health_monitor.h"
#include "gateway/http_endpoint.h"
#include "gateway/http_message.h"
#include "gateway/kv_events/event_follower.h"
#include "gateway/membership.h"
#include "gateway/otlp_exporter.h"
#include "gateway/worker.h"

namespace moonpool::gateway {

namespace {

constexpr std::chrono::seconds kTimeToTellClients{1};

using Acceptor = asio::basic_socket_acceptor<asio::ip::tcp, Executor>;

constexpr std::chrono::milliseconds kLookAtCertificatesEvery{500};

std::string too_many_clients() {
  const std::string body = openai_error(503, "the gateway has all the clients that it takes: the limit is --max-connections");
  return own_response_head(503, "application/json", {Framing::kLength, body.size(), false, {}}, "Retry-After: 1\r\n") + body;
}

Result<Endpoint> resolve_own(asio::io_context& context, const std::string& host, std::uint16_t port) {
  boost::system::error_code error;
  const auto literal = asio::ip::make_address(host, error);
  if (!error) return Endpoint(literal, port);
  asio::ip::tcp::resolver resolver(context);
  const auto found = resolver.resolve(host, std::to_string(port), error);
  if (error || found.empty()) {
    return Status(ErrorCode::kConfig,
                  "cannot listen on --host " + host + ": " + error.message() + ". Use an address or name of this machine");
  }
  // A name such as localhost: its IPv4 address, which every client tries.
  for (const auto& entry : found) {
    if (entry.endpoint().address().is_v4()) return entry.endpoint();
  }
  return found.begin()->endpoint();
}

Status listen_on(Acceptor& acceptor, const Endpoint& endpoint, const std::string& text) {
  boost::system::error_code error;
  const auto failed = [&](const char* hint) {
    return Status(ErrorCode::kConfig, "cannot listen on " + text + ": " + error.message() + ". " + hint);
  };
  acceptor.open(endpoint.protocol(), error);
  if (error) return failed("Is this kind of address available here?");
  acceptor.set_option(asio::ip::tcp::acceptor::reuse_address(true), error);
  acceptor.bind(endpoint, error);
  if (error) return failed("Choose another --port, or stop what listens there");
  acceptor.listen(asio::socket_base::max_listen_connections, error);
  if (error) return failed("Choose another --port");
  return Status();
}

std::string text_of(const Endpoint& endpoint) {
  const std::string address = endpoint.address().to_string();
  return (endpoint.address().is_v6() ? "[" + address + "]" : address) + ":" + std::to_string(endpoint.port());
}

}  // namespace

class Gateway::Impl {
 public:
  Impl(Settings settings, std::shared_ptr<Policy> prefill, std::shared_ptr<Policy> decode)
      : state_(std::move(settings), std::move(prefill), std::move(decode)) {}

  Status start() {
    const Settings& settings = state_.settings();
    MOONPOOL_RETURN_IF_ERROR(state_.tls.load(settings.tls, settings.upstream_tls));
    const unsigned threads = settings.threads != 0 ? settings.threads : std::max(1U, std::thread::hardware_concurrency());
    for (unsigned i = 0; i < threads; ++i) workers_.push_back(std::make_unique<Worker>(state_, resolver_));
    auto endpoint = resolve_own(workers_[0]->context(), settings.host, settings.port);
    if (!endpoint.ok()) return endpoint.status();
    acceptor_.emplace(workers_[0]->context().get_executor());
    MOONPOOL_RETURN_IF_ERROR(listen_on(*acceptor_, *endpoint, text_of(*endpoint)));
    boost::system::error_code ignored;
    bound_ = acceptor_->local_endpoint(ignored);
    for (const auto& name : settings.prefill) state_.prefill.add(state_.make_first_instance(name, state_.prefill));
    for (const auto& name : settings.decode) state_.decode.add(state_.make_first_instance(name, state_.decode));
    announce();
    if (!settings.otlp_endpoint.empty()) {
      auto collector = parse_http_endpoint(settings.otlp_endpoint);
      if (!collector.ok()) return Status(ErrorCode::kConfig, "--otlp-endpoint: " + collector.status().message());
      exporter_ =
          std::make_unique<OtlpExporter>(std::move(collector).value(), settings.service_name, state_.counters, resolver_, state_.tls);
      state_.otlp = exporter_.get();
      log::info("spans of sampled requests go to {}", settings.otlp_endpoint);
    }
    monitor_ = std::make_shared<HealthMonitor>(workers_[0]->context().get_executor(), state_, resolver_);
    monitor_->start();
    membership_ = std::make_shared<Membership>(workers_[0]->context().get_executor(), state_, resolver_);
    membership_->start();
    follower_ = std::make_shared<KvEventFollower>(workers_[0]->context().get_executor(), state_, resolver_);
    follower_->start();
    asio::co_spawn(workers_[0]->context().get_executor(), accept(), asio::detached);
    asio::co_spawn(workers_[0]->context().get_executor(), follow_certificates(), asio::detached);
    for (auto& worker : workers_) worker->run();
    return Status();
  }

  bool stop() {
    if (stopped_) return drained_;
    stopped_ = true;
    state_.stopping = true;
    asio::post(workers_[0]->context(), [this] {
      boost::system::error_code ignored;
      acceptor_->close(ignored);
      monitor_->stop();
      membership_->stop();
      follower_->stop();
    });
    const Deadline deadline = Deadline::after(state_.settings().timeouts.drain);
    auto& open = state_.counters.client_connections;
    while (open.load() != 0 && !deadline.expired()) {
      for (auto& worker : workers_) worker->close_idle_clients();
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    drained_ = open.load() == 0;
    if (!drained_) {
      log::warning("stopping with {} client connections still busy after the drain time (--drain-timeout): their requests are cut",
                   open.load());
      for (auto& worker : workers_) worker->interrupt_clients();
      const Deadline told = Deadline::after(kTimeToTellClients);
      while (open.load() != 0 && !told.expired()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    state_.admission.close();
    for (auto& worker : workers_) worker->stop_now();
    if (exporter_) exporter_->stop();
    return drained_;
  }

  void reload(Settings settings) {
    asio::post(workers_[0]->context(), [this, settings = std::move(settings)]() mutable {
      if (const Status loaded = state_.tls.load(settings.tls, settings.upstream_tls); !loaded.ok()) {
        log::error("TLS stays as it was: {}", loaded.message());
      }
      membership_->apply(std::move(settings));
    });
  }

  [[nodiscard]] const Endpoint& bound() const { return bound_; }

 private:
  void announce() const {
    const Settings& settings = state_.settings();
    log::info("serving {} on {}://{} with {} threads, prefill policy {}, decode policy {}", settings.model,
              settings.tls.certificate.empty() ? "http" : "https", text_of(bound_), workers_.size(), state_.prefill.policy_name(),
              state_.decode.policy_name());
    if (bound_.address().is_loopback()) log::info("only this machine can connect: --host 0.0.0.0 (or an address) listens for others");
    for (const Group* group : {&state_.prefill, &state_.decode}) {
      const auto list = group->snapshot();  // held: the group may replace its list meanwhile
      for (const auto& instance : *list) log::info("{} instance {}", group->role(), instance->name().to_string());
      if (group->empty()) log::warning("no {} instance yet: add one with POST /instances/add", group->role());
    }
    log::info("POST /instances/add is {}", settings.keys.has(KeyRole::kAdmin) ? "enabled for holders of an admin key"
                                                                              : "disabled: ADMIN_API_KEY is not set in the environment");
    if (settings.keys.has(KeyRole::kClient)) log::info("clients need an API key: {} keys are known", settings.keys.all().size());
  }

  Task<void> accept() {
    Timer pause(workers_[0]->context().get_executor());
    for (std::size_t turn = 0; !state_.stopping; ++turn) {
      Worker& worker = *workers_[turn % workers_.size()];
      auto [error, socket] = co_await acceptor_->async_accept(worker.context().get_executor(), kAwait);
      if (state_.stopping || error == asio::error::operation_aborted) co_return;
      if (error) {
        // Out of descriptors, most likely: going on at once would only spin.
        log::error("cannot accept a client: {}", error.message());
        pause.expires_after(std::chrono::milliseconds(100));
        co_await pause.async_wait(kAwait);
        continue;
      }
      if (state_.counters.client_connections.load(std::memory_order_relaxed) >= state_.settings().limits.client_connections) {
        boost::system::error_code ignored;
        if (state_.tls.server() != nullptr) continue;  // no handshake for it: closing says enough
        socket.non_blocking(true, ignored);
        socket.write_some(asio::buffer(too_many_clients()), ignored);
        continue;
      }
      worker.adopt(std::move(socket));
    }
  }

  Task<void> follow_certificates() {
    Timer pause(workers_[0]->context().get_executor());
    while (!state_.stopping) {
      pause.expires_after(kLookAtCertificatesEvery);
      co_await pause.async_wait(kAwait);
      state_.tls.look_at_files();
    }
  }

  GatewayState state_;
  std::vector<std::unique_ptr<Worker>> workers_;
  std::unique_ptr<OtlpExporter> exporter_;
  Resolver resolver_;  // after the workers and the exporter: its look-ups post to their executors
  std::shared_ptr<HealthMonitor> monitor_;
  std::shared_ptr<Membership> membership_;
  std::shared_ptr<KvEventFollower> follower_;
  std::optional<Acceptor> acceptor_;
  Endpoint bound_;
  bool stopped_ = false;
  bool drained_ = true;
};

Gateway::Gateway(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Gateway::~Gateway() { stop(); }

Result<std::unique_ptr<Gateway>> Gateway::start(Settings settings) {
  auto prefill = make_policy(settings.policy_of("prefill"), settings.policy_options);
  if (!prefill.ok()) return prefill.status();
  auto decode = make_policy(settings.policy_of("decode"), settings.policy_options);
  if (!decode.ok()) return decode.status();
  auto impl = std::make_unique<Impl>(std::move(settings), std::move(prefill).value(), std::move(decode).value());
  if (Status status = impl->start(); !status.ok()) return status;
  return std::unique_ptr<Gateway>(new Gateway(std::move(impl)));
}

void Gateway::reload(Settings settings) { impl_->reload(std::move(settings)); }

bool Gateway::stop() { return impl_->stop(); }

std::uint16_t Gateway::port() const { return impl_->bound().port(); }

std::string Gateway::address() const { return text_of(impl_->bound()); }

}  // namespace moonpool::gateway
