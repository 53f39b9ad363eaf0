#include "transfer/cuda/driver/driver_rigs_for_test.h"

#include <spdlog/fmt/fmt.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string_view>
#include <thread>

#include "transfer/cuda/driver/loaded_driver.h"

namespace moonpool::transfer::cuda {
namespace {

constexpr std::string_view kExchange = "--exchange-by-ipc";
constexpr std::string_view kIllegalLaunch = "--illegal-launch";

std::string hex(const IpcHandle& handle) {
  std::string text;
  for (const std::byte byte : handle) text += fmt::format("{:02x}", static_cast<unsigned>(byte));
  return text;
}

IpcHandle unhex(const std::string& text) {
  IpcHandle handle{};
  for (std::size_t at = 0; at < handle.size(); ++at) handle[at] = static_cast<std::byte>(std::stoul(text.substr(2 * at, 2), nullptr, 16));
  return handle;
}

class FakeRig final : public DriverRig {
 public:
  FakeRig() : driver_(FakeDriver::create()) {}
  [[nodiscard]] Driver& driver() override { return *driver_; }
  [[nodiscard]] FakeDriver* fake() override { return driver_.get(); }
  [[nodiscard]] std::string exchange_in_another_process(const IpcHandle& handle, std::size_t size, unsigned seed) override {
    return exchange(*driver_->another_process(), handle, size, seed);
  }
  [[nodiscard]] Status illegal_launch_in_another_process() override { return launch_without_tables(*driver_->another_process()); }

 private:
  std::unique_ptr<FakeDriver> driver_;
};

// This program again, which starts CUDA for itself: a child of fork() alone could not use it.
std::string run_this_program(const std::vector<std::string>& arguments) {
  std::string program = "/proc/self/exe";
  std::vector<char*> argv{program.data()};
  for (const auto& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  std::array<int, 2> output{};
  if (::pipe(output.data()) != 0) return "pipe";
  const pid_t child = ::fork();
  if (child == 0) {
    ::dup2(output[1], STDOUT_FILENO);
    ::close(output[0]);
    ::execv(program.c_str(), argv.data());
    ::_exit(127);
  }
  ::close(output[1]);
  std::string said;
  std::array<char, 512> part{};
  for (ssize_t got = 0; (got = ::read(output[0], part.data(), part.size())) > 0;) said.append(part.data(), static_cast<std::size_t>(got));
  ::close(output[0]);
  int status = 0;
  if (child < 0 || ::waitpid(child, &status, 0) != child) return "no child";
  return status == 0 ? said : fmt::format("exit status {:#x}: {}", status, said);
}

class RealRig final : public DriverRig {
 public:
  explicit RealRig(std::unique_ptr<Driver> driver) : driver_(std::move(driver)) {}
  [[nodiscard]] Driver& driver() override { return *driver_; }
  [[nodiscard]] std::string exchange_in_another_process(const IpcHandle& handle, std::size_t size, unsigned seed) override {
    return run_this_program({std::string(kExchange), hex(handle), std::to_string(size), std::to_string(seed)});
  }
  [[nodiscard]] Status illegal_launch_in_another_process() override {
    const std::string said = run_this_program({std::string(kIllegalLaunch)});
    const auto space = said.find(' ');
    const int code = std::atoi(said.c_str());
    if (space == std::string::npos || (code == 0 && said[0] != '0')) return {ErrorCode::kProtocol, said};
    return code == 0 ? Status{} : Status{ErrorCode{code}, said.substr(space + 1)};
  }

 private:
  std::unique_ptr<Driver> driver_;
};

class OwnedStream {
 public:
  explicit OwnedStream(Driver& driver, int device) : driver_(driver), device_(device), stream_(driver.create_stream(device)) {}
  OwnedStream(const OwnedStream&) = delete;
  OwnedStream& operator=(const OwnedStream&) = delete;
  ~OwnedStream() {
    if (stream_.ok()) driver_.destroy_stream(device_, *stream_);
  }
  [[nodiscard]] const Result<Stream>& get() const { return stream_; }

 private:
  Driver& driver_;
  const int device_;
  const Result<Stream> stream_;
};

// One copy between a device and pinned memory, waited for.
Status copy_and_finish(Driver& driver, int device, std::uint64_t to, std::uint64_t from, std::size_t size) {
  const OwnedStream stream(driver, device);
  if (!stream.get().ok()) return stream.get().status();
  MOONPOOL_RETURN_IF_ERROR(driver.copy(device, to, from, size, *stream.get()));
  return finish(driver, device, *stream.get());
}

}  // namespace

Bytes pattern(std::size_t size, unsigned seed) {
  Bytes bytes(size);
  std::uint64_t state = seed + 1;
  for (std::byte& byte : bytes) {
    state = state * 6364136223846793005U + 1442695040888963407U;
    byte = static_cast<std::byte>(state >> 56);
  }
  return bytes;
}

std::unique_ptr<DriverRig> make_rig(const std::string& name, std::string& why_not) {
  if (name == "fake") return std::make_unique<FakeRig>();
  auto driver = open_driver();
  if (driver.ok()) return std::make_unique<RealRig>(std::move(*driver));
  why_not = driver.status().to_string();
  return nullptr;
}

std::optional<int> run_as_other_process(int argc, char** argv) {
  const std::string_view what = argc > 1 ? argv[1] : "";
  if (what != kExchange && what != kIllegalLaunch) return std::nullopt;
  auto driver = open_driver();
  if (!driver.ok()) return 3;
  if (what == kIllegalLaunch) {
    const Status status = launch_without_tables(**driver);
    fmt::print("{} {}", status.number(), status.message());
  } else {
    fmt::print("{}", exchange(**driver, unhex(argv[2]), std::stoul(argv[3]), static_cast<unsigned>(std::stoul(argv[4]))));
  }
  return 0;
}

Status finish(Driver& driver, int device, Stream stream) {
  auto event = driver.create_event(device);
  if (!event.ok()) return event.status();
  Status status = driver.record(device, *event, stream);
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
  while (status.ok()) {
    const auto done = driver.done(device, *event);
    status = done.status();
    if (!done.ok() || *done) break;
    if (std::chrono::steady_clock::now() > deadline) status = {ErrorCode::kRpcTimeout, "the stream's work did not end in 30 s"};
    std::this_thread::yield();
  }
  driver.destroy_event(device, *event);
  return status;
}

Status upload(Driver& driver, int device, std::uint64_t to, const Bytes& bytes) {
  auto pinned = driver.allocate_host(bytes.size());
  if (!pinned.ok()) return pinned.status();
  std::memcpy(pinned->data(), bytes.data(), bytes.size());
  const Status status = copy_and_finish(driver, device, to, reinterpret_cast<std::uintptr_t>(pinned->data()), bytes.size());
  driver.free_host(*pinned);
  return status;
}

Result<Bytes> download(Driver& driver, int device, std::uint64_t from, std::size_t size) {
  auto pinned = driver.allocate_host(size);
  if (!pinned.ok()) return pinned.status();
  const Status status = copy_and_finish(driver, device, reinterpret_cast<std::uintptr_t>(pinned->data()), from, size);
  Bytes bytes(pinned->begin(), pinned->end());
  driver.free_host(*pinned);
  if (!status.ok()) return status;
  return bytes;
}

Status launch_without_tables(Driver& driver) {
  const OwnedStream stream(driver, 0);
  if (!stream.get().ok()) return stream.get().status();
  constexpr std::uintptr_t kNoMemory = 0x1000;
  const MoveArguments arguments{.pieces = reinterpret_cast<const PieceEntry*>(kNoMemory),
                                .chunks = reinterpret_cast<const ChunkEntry*>(kNoMemory),
                                .checksums = nullptr,
                                .chunk_count = 1};
  MOONPOOL_RETURN_IF_ERROR(driver.launch(0, Kernel::kGather, {.blocks = 1, .threads = 32}, arguments, *stream.get()));
  return finish(driver, 0, *stream.get());
}

std::string exchange(Driver& driver, const IpcHandle& handle, std::size_t size, unsigned seed) {
  const auto address = driver.open_ipc(0, handle);
  if (!address.ok()) return address.status().to_string();
  const auto there = download(driver, 0, *address, size);
  if (!there.ok()) return "download: " + there.status().to_string();
  if (*there != pattern(size, seed)) return "other bytes than expected";
  const Status written = upload(driver, 0, *address, pattern(size, seed + 1));
  driver.close_ipc(0, *address);
  if (!written.ok()) return "upload: " + written.to_string();
  return driver.locate(*address) ? "the address is still one of a device" : "";
}

}  // namespace moonpool::transfer::cuda
