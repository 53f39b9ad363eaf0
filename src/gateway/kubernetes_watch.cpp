#include "gateway/kubernetes_watch.h"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <utility>

namespace moonpool::gateway {

namespace {

constexpr std::size_t kListAtMost = std::size_t{64} << 20;
constexpr std::size_t kEventAtMost = std::size_t{8} << 20;  // a slice has at most 1000 endpoints
constexpr std::size_t kErrorTextAtMost = 300;
constexpr std::chrono::seconds kWatchTime{60};
constexpr std::chrono::seconds kWatchGrace{10};    // for the server to end a watch that is over
constexpr std::chrono::seconds kShortestWatch{1};  // a server that ends each at once is not asked in a circle
constexpr std::chrono::nanoseconds kPauseBeforeNewList = std::chrono::milliseconds(100);
constexpr std::string_view kPodCredentials = "/var/run/secrets/kubernetes.io/serviceaccount";

std::string percent_encoded(std::string_view text) {
  std::string encoded;
  for (const char c : text) {
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '.' || c == '_';
    if (plain) {
      encoded += c;
    } else {
      encoded += fmt::format("%{:02X}", static_cast<unsigned char>(c));
    }
  }
  return encoded;
}

// Without the white space around it; empty when there is no such file.
std::string file_text(const std::string& path) {
  std::ifstream file(path);
  std::string text(std::size_t{64} * 1024, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<std::size_t>(std::max<std::streamsize>(file.gcount(), 0)));
  while (!text.empty() && text.back() <= ' ') text.pop_back();
  return text;
}

}  // namespace

KubernetesWatch::KubernetesWatch(const Executor& executor, Resolver& resolver, KubernetesSource source, Found found)
    : pool_(executor, resolver, std::chrono::seconds(0), 0, tls_),
      source_(std::move(source)),
      found_(std::move(found)),
      folder_(source_.credentials.empty() ? std::string(kPodCredentials) : source_.credentials),
      slices_(source_.port) {}

Status KubernetesWatch::set_up() {
  auto server = parse_http_endpoint(source_.server);
  if (!server.ok()) return server.status();
  server_ = std::move(server).value();
  name_space_ = source_.name_space;
  if (name_space_.empty()) name_space_ = file_text(folder_ + "/namespace");
  if (name_space_.empty()) name_space_ = "default";
  if (!server_->name.is_secure()) return Status();
  UpstreamTls files;
  if (!file_text(folder_ + "/ca.crt").empty()) files.ca = folder_ + "/ca.crt";
  return tls_.load({}, files);
}

std::string KubernetesWatch::target(bool watch) const {
  std::string selector = "kubernetes.io/service-name=" + source_.service;
  if (!source_.label_selector.empty()) selector += "," + source_.label_selector;
  std::string text = fmt::format("{}/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices?labelSelector={}", server_->path,
                                 percent_encoded(name_space_), percent_encoded(selector));
  if (watch) {
    text += fmt::format("&watch=1&allowWatchBookmarks=true&timeoutSeconds={}&resourceVersion={}", kWatchTime.count(),
                        percent_encoded(slices_.resource_version()));
  }
  return text;
}

Result<std::string> KubernetesWatch::fields() const {
  std::string lines = "Accept: application/json\r\n";
  if (!server_->name.is_secure() && source_.credentials.empty()) return lines;
  const std::string token = file_text(folder_ + "/token");
  for (const char c : token) {
    if (c <= ' ' || c >= 0x7F) return Status(ErrorCode::kConfig, "the token of the service account has characters that no token has");
  }
  if (!token.empty()) lines += "Authorization: Bearer " + token + "\r\n";
  return lines;
}

Task<Result<std::unique_ptr<Exchange>>> KubernetesWatch::ask(bool watch, std::chrono::milliseconds patience, Cancellation& cancellation) {
  auto lines = fields();
  if (!lines.ok()) co_return lines.status();
  tls_.look_at_files();
  const UpstreamRequest request{upstream_request_head("GET", target(watch), server_->name.authority(), *lines, 0), {}};
  const Deadline deadline = Deadline::after(patience);
  auto opened = co_await pool_.open(server_->name, request, {deadline.left(), deadline}, cancellation);
  if (!opened.ok()) co_return opened.status();
  auto exchange = std::move(opened).value();
  const unsigned status = exchange->answer.status;
  if (status == 200) co_return std::move(exchange);
  const Status whole = co_await read_whole(*exchange, kErrorTextAtMost, deadline.left(), deadline, cancellation);
  static_cast<void>(whole);  // as much of its text as came
  std::string text = fmt::format("HTTP {} to GET of the EndpointSlices of {} in {}: {}", status, source_.service, name_space_,
                                 std::string_view(exchange->answer.body).substr(0, kErrorTextAtMost));
  for (char& c : text) c = c >= ' ' && c < 0x7F ? c : ' ';
  co_return Status(status == 410 ? ErrorCode::kInvalidVersion : ErrorCode::kRpcFail, std::move(text));
}

Task<Status> KubernetesWatch::list(std::chrono::milliseconds patience, Cancellation& cancellation) {
  auto opened = co_await ask(false, patience, cancellation);
  if (!opened.ok()) co_return opened.status();
  auto exchange = std::move(opened).value();
  const Deadline deadline = Deadline::after(patience);
  Status status = co_await read_whole(*exchange, kListAtMost, deadline.left(), deadline, cancellation);
  if (status.ok()) status = slices_.replace(exchange->answer.body);
  if (!status.ok()) co_return status;
  pool_.release(std::move(exchange));
  found_(slices_.names());
  co_return Status();
}

Task<Status> KubernetesWatch::watch(std::chrono::milliseconds patience, Cancellation& cancellation) {
  auto opened = co_await ask(true, patience, cancellation);
  if (!opened.ok()) co_return opened.status();
  auto exchange = std::move(opened).value();
  ResponseParser& answer = exchange->answer;
  const Deadline deadline = Deadline::after(kWatchTime + kWatchGrace);
  std::string lines;
  for (;;) {
    lines += std::exchange(answer.body, {});
    if (Status status = take_events(lines); !status.ok()) co_return status;
    if (lines.size() > kEventAtMost) co_return Status(ErrorCode::kProtocol, "an event of the API server is too long");
    if (answer.is_done()) break;
    const Cancellation::Scope scope(cancellation, *exchange->connection);
    const Status status = co_await exchange->connection->read(answer, deadline);
    if (!status.ok()) co_return status;
  }
  pool_.release(std::move(exchange));
  co_return Status();
}

Status KubernetesWatch::take_events(std::string& lines) {
  bool changed = false;
  std::size_t at = 0;
  for (std::size_t end = lines.find('\n'); end != std::string::npos; end = lines.find('\n', at)) {
    const std::string_view line = std::string_view(lines).substr(at, end - at);
    at = end + 1;
    if (line.find_first_not_of(" \r") == std::string_view::npos) continue;
    const auto applied = slices_.apply(line);
    if (!applied.ok()) return applied.status();
    changed = changed || *applied;
  }
  lines.erase(0, at);
  if (changed) found_(slices_.names());
  return Status();
}

Task<void> KubernetesWatch::run(std::chrono::milliseconds patience, Cancellation& cancellation) {
  while (!cancellation.cancelled()) {
    Status status = set_up();
    if (status.ok()) status = co_await list(patience, cancellation);
    while (status.ok() && !cancellation.cancelled()) {
      const Deadline soon = Deadline::after(kShortestWatch);
      status = co_await watch(patience, cancellation);
      if (status.ok() && !soon.expired()) co_await pause(soon.left(), cancellation);
    }
    if (cancellation.cancelled()) co_return;
    std::chrono::nanoseconds rest = source_.interval;
    if (status.code() == ErrorCode::kInvalidVersion) {
      rest = std::min(rest, kPauseBeforeNewList);
    } else {
      found_(status);
    }
    co_await pause(rest, cancellation);
  }
}

}  // namespace moonpool::gateway
