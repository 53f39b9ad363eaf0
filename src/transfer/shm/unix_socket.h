// The few calls of an abstract Unix socket that this path needs. SOCK_SEQPACKET: one datagram a frame, in order, with an end that is seen.
//
// An abstract name has no file: it is gone with its process, needs no shared file system, and exists in one network namespace only, which
// is why two containers that cannot reach it use tcp. All sockets are non-blocking and close-on-exec. Threads: any.
#pragma once

#include <sys/types.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "net/unique_fd.h"

namespace moonpool::transfer {

inline constexpr std::size_t kMaxDatagram = std::size_t{96} * 1024;
inline constexpr std::size_t kMaxDescriptors = 2;

[[nodiscard]] std::string socket_name(const NodeId& node);
[[nodiscard]] Result<net::UniqueFd> listen_on_name(const std::string& name);
// kUnavailable when nobody listens there, or not now.
[[nodiscard]] Result<net::UniqueFd> connect_to_name(const std::string& name);

struct PeerProcess {
  pid_t pid = 0;  // 0: in a process namespace that we do not see
  uid_t uid = 0;
};
[[nodiscard]] Result<PeerProcess> peer_of(int fd);

struct Datagram {
  enum class Kind { kData, kNothingYet, kBad, kEnd };
  Kind kind = Kind::kNothingYet;
  std::size_t size = 0;  // of the data, in the caller's buffer
  std::array<net::UniqueFd, kMaxDescriptors> descriptors;
};
// Takes the next datagram if there is one. One that does not fit is bad; any error is an end.
[[nodiscard]] Datagram receive_datagram(int fd, std::span<std::byte> buffer);

enum class SendOutcome { kSent, kFull, kEnd };
[[nodiscard]] SendOutcome send_datagram(int fd, std::string_view frame, std::span<const int> descriptors = {});

}  // namespace moonpool::transfer
