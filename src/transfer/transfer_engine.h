// TransferEngine: moves bytes between registered memories of processes; knows nothing of objects or masters (the Python class
// mooncake.engine.TransferEngine and the C++ API underneath it).
//
// A process initialises it with its own name, registers memory, and reads or writes the registered memory of a peer by address. Peers
// are found through the metadata server under "moonpool/segment/<name>" (an EngineDescriptor), or, with "P2PHANDSHAKE", by asking the peer
// at host:port itself. A request to an address outside what the peer registered is refused before any byte moves.
//
// Threads: all methods from any thread; a synchronous transfer works on the caller's thread; asynchronous ones on a small pool
// owned by the engine. Lifetime: registered memory must outlive its registration; the destructor stops the server and joins the threads.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/deadline.h"
#include "base/result.h"

namespace moonpool::transfer {

enum class Opcode : std::uint8_t { kRead = 0, kWrite = 1 };

struct EngineOptions {
  std::string name;          // "host" or "host:port" by which peers find this engine; the server binds to the host part
  std::string metadata_url;  // any form of metadata_url.h, or "P2PHANDSHAKE"
  std::string protocol = "tcp";
  std::string device_names;
  std::string cluster_token;
  std::chrono::milliseconds timeout{30000};  // of one transfer
};

struct Piece {
  std::uint64_t local = 0;   // address in this process
  std::uint64_t remote = 0;  // address in the peer
  std::uint64_t length = 0;
};

struct Notification {
  std::string name;
  std::string message;
};

enum class TransferState : std::uint8_t { kPending, kDone, kFailed, kTimedOut };

class TransferEngine {
 public:
  [[nodiscard]] static Result<std::unique_ptr<TransferEngine>> create(EngineOptions options);
  ~TransferEngine();

  // "host:port" under which peers reach this engine (its session id), and that port.
  [[nodiscard]] std::string session() const;
  [[nodiscard]] std::uint16_t port() const;

  // kInvalidParams for null or empty ranges, kSegmentAlreadyExists for an overlap with a registered range.
  Status register_memory(std::uint64_t address, std::uint64_t length, std::string_view location = "*");
  Status unregister_memory(std::uint64_t address);

  // Moves all pieces; returns when they have arrived. Errors name the peer, the operation and the remedy.
  Status transfer(std::string_view peer, Opcode opcode, const std::vector<Piece>& pieces, const Notification* notify = nullptr);
  // The same in the background. The id is never 0.
  [[nodiscard]] Result<std::uint64_t> submit(std::string_view peer, Opcode opcode, std::vector<Piece> pieces);
  // kInvalidParams for an id never given; a finished transfer may be asked for again until `forget`.
  [[nodiscard]] Result<TransferState> state(std::uint64_t id) const;
  // Waits for the end of the transfer and forgets it. Its error when it failed.
  Status wait(std::uint64_t id);
  void forget(std::uint64_t id);

  // The address of the peer's first registered range.
  [[nodiscard]] Result<std::uint64_t> first_buffer(std::string_view peer);
  Status probe(std::string_view peer);
  Status notify(std::string_view peer, const Notification& notification);
  [[nodiscard]] std::vector<Notification> take_notifications();

 private:
  class Impl;
  explicit TransferEngine(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace moonpool::transfer
