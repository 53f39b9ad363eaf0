#include "gateway/dns_client.h"

#include <arpa/inet.h>
#include <arpa/nameser.h>
#include <netdb.h>
#include <netinet/in.h>
#include <resolv.h>

#include <algorithm>
#include <span>

#include "gateway/dns_records.h"

namespace moonpool::gateway {

namespace {

constexpr std::size_t kAnswerAtMost = std::size_t{64} * 1024;  // all that DNS over TCP can say
constexpr int kTries = 2;
constexpr int kLongestWaitS = 5;

// The resolver's state, for one look-up.
class Client {
 public:
  Client(std::string server, Deadline deadline) : server_(std::move(server)), deadline_(deadline) {}
  ~Client() {
    if (started_) ::res_nclose(&state_);
  }
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  Status start() {
    if (::res_ninit(&state_) != 0) return Status(ErrorCode::kUnavailable, "the system's resolver cannot be set up: see /etc/resolv.conf");
    started_ = true;
    if (!server_.empty()) {
      auto name = InstanceName::parse(server_);
      if (!name.ok()) return name.status();
      sockaddr_in address{};
      address.sin_family = AF_INET;
      address.sin_port = htons(name->port());
      if (::inet_pton(AF_INET, name->host().c_str(), &address.sin_addr) != 1) {
        return Status(ErrorCode::kConfig, "the name server " + server_ + " has to be an IPv4 address with its port");
      }
      state_.nscount = 1;
      state_.nsaddr_list[0] = address;
    }
    state_.retry = kTries;
    return Status();
  }

  // The answer's bytes, good until the next question. kObjectNotFound: there is no such name, or it has no such record.
  Result<std::span<const unsigned char>> ask(const std::string& name, int type, bool search) {
    if (deadline_.expired()) return late(name);
    const auto servers = std::max(1, state_.nscount);
    const auto left_s = std::chrono::ceil<std::chrono::seconds>(deadline_.left()).count();
    state_.retrans = static_cast<int>(std::clamp<std::int64_t>(left_s / (std::int64_t{kTries} * servers), 1, kLongestWaitS));
    const int size = search ? ::res_nsearch(&state_, name.c_str(), ns_c_in, type, answer_.data(), static_cast<int>(answer_.size()))
                            : ::res_nquery(&state_, name.c_str(), ns_c_in, type, answer_.data(), static_cast<int>(answer_.size()));
    if (size >= 0) return std::span<const unsigned char>(answer_.data(), std::min(static_cast<std::size_t>(size), answer_.size()));
    if (state_.res_h_errno == HOST_NOT_FOUND) return Status(ErrorCode::kObjectNotFound, "there is no name " + name);
    if (state_.res_h_errno == NO_DATA) return Status(ErrorCode::kObjectNotFound, name + " has no such record");
    if (deadline_.expired()) return late(name);
    return Status(ErrorCode::kUnavailable, "no name server answers for " + name);
  }

  // None where the host does not exist.
  Result<std::vector<std::string>> addresses(const std::string& host) {
    for (const bool ipv6 : {false, true}) {
      auto answer = ask(host, ipv6 ? ns_t_aaaa : ns_t_a, false);
      if (answer.code() == ErrorCode::kObjectNotFound) continue;
      if (!answer.ok()) return answer.status();
      auto found = parse_address_answer(*answer, ipv6);
      if (!found.ok() || !found->empty()) return found;
    }
    return std::vector<std::string>();
  }

 private:
  static Status late(const std::string& name) {
    return Status(ErrorCode::kRpcTimeout, "the look-up of " + name + " took too long: check the name server");
  }

  const std::string server_;
  const Deadline deadline_;
  struct __res_state state_ {};
  bool started_ = false;
  std::vector<unsigned char> answer_ = std::vector<unsigned char>(kAnswerAtMost);
};

}  // namespace

Result<std::vector<InstanceName>> look_up_services(const std::string& name, const std::string& server, Deadline deadline) {
  Client client(server, deadline);
  MOONPOOL_RETURN_IF_ERROR(client.start());
  const auto answer = client.ask(name, ns_t_srv, server.empty() && !name.ends_with('.'));
  if (!answer.ok()) return answer.status();
  const auto services = parse_srv_answer(*answer);
  if (!services.ok()) return services.status();
  if (services->empty()) return Status(ErrorCode::kObjectNotFound, name + " has no SRV record");
  std::vector<InstanceName> names;
  for (const SrvRecord& service : *services) {
    auto addresses = client.addresses(service.target);
    if (!addresses.ok()) return addresses.status();
    for (const std::string& address : *addresses) {
      const bool ipv6 = address.find(':') != std::string::npos;
      auto instance = InstanceName::parse((ipv6 ? "[" + address + "]" : address) + ":" + std::to_string(service.port));
      if (!instance.ok()) continue;  // port 0
      if (std::find(names.begin(), names.end(), *instance) == names.end()) names.push_back(std::move(instance).value());
    }
  }
  if (names.empty()) return Status(ErrorCode::kObjectNotFound, "no target of " + name + " has an address");
  return names;
}

}  // namespace moonpool::gateway
