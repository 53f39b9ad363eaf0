// The loaded driver over a table of functions that are the test's: what it calls, in which context, and what it makes of the answers. With
// a real driver underneath, driver_test.cpp tests it.
#include "transfer/cuda/driver/loaded_driver.h"

#include <dlfcn.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "transfer/cuda/driver/driver_library.h"

namespace moonpool::transfer::cuda {
namespace {

using api::Result;
using testing::ElementsAre;
using testing::HasSubstr;

// The driver's other side. Contexts are the device's number plus kContext.
struct Stub {
  static constexpr std::uintptr_t kContext = 0x100;
  static constexpr int kHandle = 40;
  static constexpr std::uintptr_t kCallersContext = 0x7;

  std::map<std::string, Result> answers;  // of functions that are to fail
  std::vector<std::string> calls;         // "cuMemAlloc in 0": those that need a context
  std::vector<std::uintptr_t> contexts{kCallersContext};
  int capture_mode = 0;  // global
  std::vector<int> retained, released;
  std::vector<bool> active{false, false};
  int peers = 1;
  std::map<int, std::uint64_t> attributes;  // of every pointer
  int modules = 0;
  std::vector<std::string> functions;
  MoveArguments launched{};

  // A call that needs a context, and not to disturb a capture.
  Result called(const std::string& name) {
    const auto context = contexts.back();
    EXPECT_GE(context, kContext) << name << " without the device's context";
    EXPECT_EQ(capture_mode, api::kCaptureModeRelaxed) << name;
    calls.push_back(name + " in " + std::to_string(context - kContext));
    return answer(name);
  }
  Result answer(const std::string& name) const {
    const auto found = answers.find(name);
    return found == answers.end() ? Result::kSuccess : found->second;
  }
};

Stub* stub = nullptr;

api::Context context_of(int device) { return reinterpret_cast<api::Context>(Stub::kContext + std::uintptr_t(device)); }

void add_devices_and_contexts(api::Functions& table) {
  table.init = [](unsigned) { return stub->answer("cuInit"); };
  table.get_error_name = [](Result error, const char** name) {
    *name = error == Result::kOutOfMemory ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_OF_THE_STUB";
    return Result::kSuccess;
  };
  table.get_error_string = [](Result, const char** text) {
    *text = "what it means";
    return Result::kSuccess;
  };
  table.device_get_count = [](int* count) {
    *count = int(stub->active.size());
    return stub->answer("cuDeviceGetCount");
  };
  // Numbers of devices and handles of devices are not the same here.
  table.device_get = [](api::Device* device, int number) {
    *device = Stub::kHandle + number;
    return Result::kSuccess;
  };
  table.device_get_name = [](char* name, int, int) {
    std::strcpy(name, "Stub GPU");
    return Result::kSuccess;
  };
  table.device_get_attribute = [](int* value, int attribute, int) {
    *value = attribute;
    return stub->answer("cuDeviceGetAttribute");
  };
  table.device_get_pci_bus_id = [](char* id, int, int) {
    std::strcpy(id, "0000:1B:00.0");
    return Result::kSuccess;
  };
  table.device_get_uuid = [](api::Uuid* uuid, int device) {
    std::memset(uuid->bytes, 'a' + device - Stub::kHandle, sizeof uuid->bytes);
    return Result::kSuccess;
  };
  table.primary_context_retain = [](api::Context* context, int device) {
    stub->retained.push_back(device - Stub::kHandle);
    *context = context_of(device - Stub::kHandle);
    return stub->answer("cuDevicePrimaryCtxRetain");
  };
  table.primary_context_release = [](int device) {
    stub->released.push_back(device - Stub::kHandle);
    return Result::kSuccess;
  };
  table.primary_context_get_state = [](int device, unsigned*, int* active) {
    *active = stub->active[std::size_t(device - Stub::kHandle)] ? 1 : 0;
    return Result::kSuccess;
  };
  table.context_push_current = [](api::Context context) {
    stub->contexts.push_back(reinterpret_cast<std::uintptr_t>(context));
    return Result::kSuccess;
  };
  table.context_pop_current = [](api::Context*) {
    stub->contexts.pop_back();
    return Result::kSuccess;
  };
  table.context_enable_peer_access = [](api::Context peer, unsigned) {
    return stub->called("cuCtxEnablePeerAccess of " + std::to_string(reinterpret_cast<std::uintptr_t>(peer) - Stub::kContext));
  };
  table.device_can_access_peer = [](int* can, int device, int peer) {
    EXPECT_GE(std::min(device, peer), Stub::kHandle);
    *can = stub->peers;
    return Result::kSuccess;
  };
  table.thread_exchange_stream_capture_mode = [](int* mode) {
    std::swap(*mode, stub->capture_mode);
    return Result::kSuccess;
  };
}

void add_work(api::Functions& table) {
  table.stream_create = [](api::Stream* stream, unsigned flags, int priority) {
    EXPECT_EQ(flags, api::kStreamNonBlocking);
    EXPECT_EQ(priority, api::kMostUrgent);
    *stream = reinterpret_cast<api::Stream>(0x500);
    return stub->called("cuStreamCreateWithPriority");
  };
  table.stream_destroy = [](api::Stream) { return stub->called("cuStreamDestroy"); };
  table.stream_wait_event = [](api::Stream, api::Event, unsigned) { return stub->called("cuStreamWaitEvent"); };
  table.event_create = [](api::Event* event, unsigned flags) {
    EXPECT_EQ(flags, api::kEventDisableTiming);
    *event = reinterpret_cast<api::Event>(0x600);
    return stub->called("cuEventCreate");
  };
  table.event_destroy = [](api::Event) { return stub->called("cuEventDestroy"); };
  table.event_record = [](api::Event, api::Stream stream) {
    EXPECT_EQ(stream, nullptr);
    return stub->called("cuEventRecord");
  };
  table.event_query = [](api::Event) { return stub->called("cuEventQuery"); };
  table.copy_async = [](api::DevicePointer, api::DevicePointer, std::size_t, api::Stream) { return stub->called("cuMemcpyAsync"); };
  table.module_load_data = [](api::Module* module, const void*) {
    *module = reinterpret_cast<api::Module>(0x700);
    ++stub->modules;
    return stub->called("cuModuleLoadData");
  };
  table.module_unload = [](api::Module) {
    --stub->modules;
    return Result::kSuccess;
  };
  table.module_get_function = [](api::Function* function, api::Module, const char* name) {
    stub->functions.emplace_back(name);
    *function = reinterpret_cast<api::Function>(stub->functions.size());
    return Result::kSuccess;
  };
  table.launch_kernel = [](api::Function function, unsigned grid, unsigned, unsigned, unsigned block, unsigned, unsigned, unsigned shared,
                           api::Stream, void** parameters, void**) {
    stub->launched = *static_cast<const MoveArguments*>(parameters[0]);
    return stub->called("cuLaunchKernel " + std::to_string(reinterpret_cast<std::uintptr_t>(function)) + " " + std::to_string(grid) + "x" +
                        std::to_string(block) + "+" + std::to_string(shared));
  };
}

void add_memory(api::Functions& table) {
  table.pointer_get_attributes = [](unsigned count, int* attributes, void** data, api::DevicePointer) {
    for (unsigned at = 0; at < count; ++at) {
      const bool whole = attributes[at] == api::kRangeStart || attributes[at] == api::kRangeSize || attributes[at] == api::kDevicePointer;
      if (attributes[at] == api::kDevicePointer) (void)stub->called("cuPointerGetAttributes");  // the only one that asks for a context
      const std::uint64_t value = stub->attributes[attributes[at]];
      std::memcpy(data[at], &value, whole ? 8 : 4);
    }
    return stub->answer("cuPointerGetAttributes");
  };
  table.memory_allocate = [](api::DevicePointer* address, std::size_t) {
    *address = 0x7000;
    return stub->called("cuMemAlloc");
  };
  table.memory_free = [](api::DevicePointer) { return stub->called("cuMemFree"); };
  table.host_allocate = [](void**, std::size_t, unsigned flags) {
    EXPECT_EQ(flags, api::kHostPortable | api::kHostDeviceMap);
    return stub->called("cuMemHostAlloc");
  };
  table.host_free = [](void*) { return stub->called("cuMemFreeHost"); };
  table.host_register = [](void*, std::size_t, unsigned flags) {
    EXPECT_EQ(flags, api::kHostPortable | api::kHostDeviceMap);
    return stub->called("cuMemHostRegister");
  };
  table.host_unregister = [](void*) { return stub->called("cuMemHostUnregister"); };
  table.ipc_get_handle = [](api::IpcMemoryHandle*, api::DevicePointer) { return stub->called("cuIpcGetMemHandle"); };
  table.ipc_open_handle = [](api::DevicePointer*, api::IpcMemoryHandle, unsigned flags) {
    EXPECT_EQ(flags, api::kIpcLazyEnablePeerAccess);
    return stub->called("cuIpcOpenMemHandle");
  };
  table.ipc_close_handle = [](api::DevicePointer) { return stub->called("cuIpcCloseMemHandle"); };
}

class LoadedDriverTest : public testing::Test {
 protected:
  LoadedDriverTest() {
    stub = &stub_;
    add_devices_and_contexts(table_);
    add_work(table_);
    add_memory(table_);
  }
  ~LoadedDriverTest() override {
    driver_.reset();
    EXPECT_THAT(stub_.contexts, ElementsAre(Stub::kCallersContext));
    EXPECT_EQ(stub_.capture_mode, 0);
    EXPECT_EQ(stub_.modules, 0);
    std::ranges::sort(stub_.released);
    std::ranges::sort(stub_.retained);
    const auto failed = stub_.answers.contains("cuDevicePrimaryCtxRetain") ? 1 : 0;
    EXPECT_EQ(stub_.released.size() + failed, stub_.retained.size());
    EXPECT_TRUE(std::ranges::includes(stub_.retained, stub_.released));
    stub = nullptr;
  }
  Driver& driver() {
    if (driver_ == nullptr) {
      auto started = start_driver(table_, image_);
      EXPECT_TRUE(started.ok()) << started.status().to_string();
      driver_ = std::move(*started);
    }
    return *driver_;
  }

  Stub stub_;
  api::Functions table_;
  std::array<std::byte, 16> some_image_{};
  std::span<const std::byte> image_ = some_image_;
  std::unique_ptr<Driver> driver_;
};

TEST(DriverLibrary, OneThatIsNotThereIsNamedWithWhereItComesFrom) {
  const auto functions = load_functions("libmoonpool-no-such-cuda.so.1");
  ASSERT_EQ(functions.code(), ErrorCode::kNotSupported);
  EXPECT_THAT(functions.status().message(), HasSubstr("libmoonpool-no-such-cuda.so.1 is not on this host"));
  EXPECT_THAT(functions.status().message(), HasSubstr("NVIDIA's driver"));
  EXPECT_THAT(functions.status().message(), HasSubstr("--gpus"));
}

TEST(DriverLibrary, OneWithoutAFunctionIsTooOld) {
  const auto functions = load_functions("libc.so.6");
  ASSERT_EQ(functions.code(), ErrorCode::kNotSupported);
  EXPECT_THAT(functions.status().message(), HasSubstr("libc.so.6 on this host is too old, it has no cuInit"));
  EXPECT_THAT(functions.status().message(), HasSubstr("11.4"));
}

TEST(DriverLibrary, WhereThereIsNoneTheDriverSaysSoAndIsNotLoaded) {
  if (void* const library = ::dlopen("libcuda.so.1", RTLD_LAZY)) {
    EXPECT_TRUE(driver_is_loaded());
    ::dlclose(library);
    GTEST_SKIP() << "libcuda.so.1 is on this host";
  }
  EXPECT_FALSE(driver_is_loaded());
  const auto driver = open_driver();
  ASSERT_EQ(driver.code(), ErrorCode::kNotSupported);
  EXPECT_THAT(driver.status().message(), HasSubstr("libcuda.so.1 is not on this host"));
}

TEST_F(LoadedDriverTest, WhatKeepsCudaFromStartingHasARemedy) {
  const std::pair<Result, const char*> remedies[] = {{Result::kNotInitialized, "spawn"},
                                                     {Result::kNoDevice, "CUDA_VISIBLE_DEVICES"},
                                                     {Result::kStubLibrary, "LD_LIBRARY_PATH"},
                                                     {Result::kSystemNotReady, "fabricmanager"},
                                                     {Result::kUnknown, "/dev/nvidia-uvm"}};
  for (const auto& [result, remedy] : remedies) {
    stub_.answers["cuInit"] = result;
    const auto driver = start_driver(table_, image_);
    ASSERT_EQ(driver.code(), ErrorCode::kNotSupported) << remedy;
    EXPECT_THAT(driver.status().message(), HasSubstr("cuInit: CUDA_ERROR_OF_THE_STUB (what it means)"));
    EXPECT_THAT(driver.status().message(), HasSubstr(remedy));
  }
  stub_.answers.clear();
  stub_.active.clear();
  EXPECT_EQ(start_driver(table_, image_).code(), ErrorCode::kNotSupported);
}

TEST_F(LoadedDriverTest, EachCallIsInItsDevicesContextWhichIsRetainedOnce) {
  ASSERT_TRUE(driver().allocate(1, 16).ok());
  EXPECT_THAT(stub_.contexts, ElementsAre(Stub::kCallersContext));
  EXPECT_EQ(stub_.capture_mode, 0);
  const auto stream = driver().create_stream(1);
  const auto event = driver().create_event(0);
  ASSERT_TRUE(stream.ok() && event.ok());
  ASSERT_TRUE(driver().record(0, *event, Stream::kLegacyDefault).ok());
  ASSERT_TRUE(driver().wait(1, *stream, *event).ok());
  ASSERT_TRUE(driver().copy(1, 1, 2, 3, *stream).ok());
  driver().destroy_stream(1, *stream);
  driver().destroy_event(0, *event);
  driver().free(1, 0x7000);
  EXPECT_THAT(stub_.calls,
              ElementsAre("cuMemAlloc in 1", "cuStreamCreateWithPriority in 1", "cuEventCreate in 0", "cuEventRecord in 0",
                          "cuStreamWaitEvent in 1", "cuMemcpyAsync in 1", "cuStreamDestroy in 1", "cuEventDestroy in 0", "cuMemFree in 1"));
  EXPECT_THAT(stub_.retained, ElementsAre(1, 0));
}

TEST_F(LoadedDriverTest, FactsAndLocationsNeedNoContext) {
  const auto facts = driver().facts(1);
  ASSERT_TRUE(facts.ok());
  EXPECT_EQ(facts->pci_bus_id, "0000:1b:00.0");
  EXPECT_EQ(facts->uuid, std::string(16, 'b'));
  EXPECT_THAT(facts->no_dma_buf, HasSubstr("CUDA 11.7"));  // a driver without the function
  stub_.attributes = {{api::kMemoryType, 2}, {api::kDeviceOrdinal, 1}, {api::kRangeStart, 0x7f0000000000}, {api::kRangeSize, 1ULL << 33}};
  const auto memory = driver().locate(0x7f0000001000);
  ASSERT_TRUE(memory);
  EXPECT_EQ(memory->device, 1);
  EXPECT_EQ(memory->base, 0x7f0000000000U);
  EXPECT_EQ(memory->size, 1ULL << 33);
  EXPECT_THAT(stub_.retained, testing::IsEmpty());
}

TEST_F(LoadedDriverTest, HostManagedAndForeignMemoryIsNotLocated) {
  const std::map<int, std::uint64_t> device{{api::kMemoryType, 2}, {api::kDeviceOrdinal, 0}, {api::kRangeStart, 1}, {api::kRangeSize, 1}};
  stub_.attributes = {};
  EXPECT_FALSE(driver().locate(1));  // unknown to CUDA: zeroes
  for (const auto& [attribute, value] :
       {std::pair{api::kMemoryType, 1ULL}, {api::kIsManaged, 1ULL}, {api::kDeviceOrdinal, 0xffffffffULL}, {api::kDeviceOrdinal, 2ULL}}) {
    stub_.attributes = device;
    EXPECT_TRUE(driver().locate(1));
    stub_.attributes[attribute] = value;
    EXPECT_FALSE(driver().locate(1)) << attribute << " = " << value;
  }
  stub_.attributes = device;
  stub_.answers["cuPointerGetAttributes"] = Result::kInvalidValue;
  EXPECT_FALSE(driver().locate(1));
}

TEST_F(LoadedDriverTest, HostMemoryIsPinnedByADeviceThatIsInUseAnyway) {
  stub_.active[1] = true;
  std::array<std::byte, 64> memory{};
  ASSERT_TRUE(driver().register_host(memory).ok());
  driver().unregister_host(memory);
  EXPECT_THAT(stub_.calls, ElementsAre("cuMemHostRegister in 1", "cuMemHostUnregister in 1"));
  EXPECT_THAT(stub_.retained, ElementsAre(1));
}

TEST_F(LoadedDriverTest, OnlyPinnedHostMemoryHasADeviceAddress) {
  std::array<std::byte, 64> memory{};
  stub_.attributes = {{api::kMemoryType, 1}, {api::kDevicePointer, 0x7f0000002000}};
  const auto address = driver().device_address(1, memory.data());
  ASSERT_TRUE(address.ok()) << address.status().to_string();
  EXPECT_EQ(*address, 0x7f0000002000U);
  stub_.attributes = {};  // unknown to CUDA
  EXPECT_THAT(driver().device_address(1, memory.data()).status().message(), HasSubstr("the memory is not pinned"));
  EXPECT_THAT(stub_.calls, ElementsAre("cuPointerGetAttributes in 1", "cuPointerGetAttributes in 1"));
}

TEST_F(LoadedDriverTest, ALimitOfPinnedMemoryIsNamedWithItsRemedy) {
  std::array<std::byte, 64> memory{};
  for (const Result result : {Result::kOutOfMemory, Result::kOperatingSystem}) {
    stub_.answers["cuMemHostRegister"] = stub_.answers["cuMemHostAlloc"] = result;
    const Status refused = driver().register_host(memory);
    EXPECT_EQ(refused.code(), ErrorCode::kNoAvailableHandle);
    EXPECT_THAT(refused.message(), HasSubstr("ulimit -l"));
    EXPECT_THAT(refused.message(), HasSubstr("64 bytes"));
    EXPECT_EQ(driver().allocate_host(64).code(), ErrorCode::kNoAvailableHandle);
  }
  stub_.answers["cuMemHostRegister"] = Result::kHostMemoryAlreadyRegistered;
  EXPECT_EQ(driver().register_host(memory).code(), ErrorCode::kSegmentAlreadyExists);
  stub_.answers["cuMemHostRegister"] = Result::kInvalidValue;
  EXPECT_EQ(driver().register_host(memory).code(), ErrorCode::kInternal);
}

TEST_F(LoadedDriverTest, AnErrorHasTheCallItsNameItsTextAndTheDevice) {
  stub_.answers["cuMemAlloc"] = Result::kOutOfMemory;
  const auto address = driver().allocate(1, 16);
  EXPECT_EQ(address.code(), ErrorCode::kNoAvailableHandle);
  EXPECT_EQ(address.status().message(), "cuMemAlloc: CUDA_ERROR_OUT_OF_MEMORY (what it means), device 1");
}

TEST_F(LoadedDriverTest, AContextThatCannotBeHadIsAnErrorOfTheCallAndTriedAgain) {
  stub_.answers["cuDevicePrimaryCtxRetain"] = Result::kOutOfMemory;
  EXPECT_THAT(driver().create_stream(0).status().message(), HasSubstr("cuDevicePrimaryCtxRetain: CUDA_ERROR_OUT_OF_MEMORY"));
  stub_.answers["cuDevicePrimaryCtxRetain"] = Result::kSuccess;
  EXPECT_TRUE(driver().create_stream(0).ok());
  EXPECT_THAT(stub_.retained, ElementsAre(0, 0));
}

TEST_F(LoadedDriverTest, AnEventIsNotReadyOrReadyOrBroken) {
  stub_.answers["cuEventQuery"] = Result::kNotReady;
  EXPECT_FALSE(*driver().done(0, Event{0x600}));
  stub_.answers["cuEventQuery"] = Result::kSuccess;
  EXPECT_TRUE(*driver().done(0, Event{0x600}));
  stub_.answers["cuEventQuery"] = Result::kIllegalAddress;
  EXPECT_EQ(driver().done(0, Event{0x600}).code(), ErrorCode::kInternal);
}

TEST_F(LoadedDriverTest, KernelsAreLoadedOnceADeviceAndGetTheirArgumentsByValue) {
  const MoveArguments arguments{.pieces = nullptr, .chunks = nullptr, .checksums = nullptr, .chunk_count = 17};
  for (const int device : {0, 1, 1}) {
    ASSERT_TRUE(driver().launch(device, Kernel::kGatherHash, {.blocks = 16, .threads = 512}, arguments, Stream::kLegacyDefault).ok());
  }
  EXPECT_EQ(stub_.launched.chunk_count, 17U);
  EXPECT_EQ(stub_.modules, 2);
  ASSERT_EQ(stub_.functions.size(), 8U);
  EXPECT_EQ(stub_.functions[2], "moonpool_gather_hash");
  EXPECT_THAT(stub_.calls, ElementsAre("cuModuleLoadData in 0", "cuLaunchKernel 3 16x512+0 in 0", "cuModuleLoadData in 1",
                                       "cuLaunchKernel 7 16x512+0 in 1", "cuLaunchKernel 7 16x512+0 in 1"));
}

TEST_F(LoadedDriverTest, ADeviceThatNoKernelIsForSaysSoAndIsNotAskedAgain) {
  stub_.answers["cuModuleLoadData"] = Result::kNoBinaryForGpu;
  for (int call = 0; call < 2; ++call) {
    const Status status = driver().launch(0, Kernel::kGather, {.blocks = 1, .threads = 32}, {}, Stream::kLegacyDefault);
    EXPECT_EQ(status.code(), ErrorCode::kNotSupported);
    EXPECT_THAT(status.message(), HasSubstr("8.0"));
  }
  EXPECT_THAT(stub_.calls, ElementsAre("cuModuleLoadData in 0"));
  stub_.modules = 0;  // it gave none
}

TEST_F(LoadedDriverTest, KernelsThatFoundNoMemoryAreLoadedAtTheNextLaunch) {
  stub_.answers["cuModuleLoadData"] = Result::kOutOfMemory;
  const auto launch = [this] { return driver().launch(0, Kernel::kGather, {.blocks = 1, .threads = 32}, {}, Stream::kLegacyDefault); };
  EXPECT_EQ(launch().code(), ErrorCode::kNoAvailableHandle);
  stub_.modules = 0;  // it gave none
  stub_.answers.clear();
  EXPECT_TRUE(launch().ok());
}

TEST_F(LoadedDriverTest, ABuildWithoutKernelsRefusesALaunchWithoutAskingCuda) {
  image_ = {};
  const Status status = driver().launch(0, Kernel::kGather, {.blocks = 1, .threads = 32}, {}, Stream::kLegacyDefault);
  EXPECT_EQ(status.code(), ErrorCode::kNotSupported);
  EXPECT_THAT(status.message(), HasSubstr("nvcc"));
  EXPECT_THAT(stub_.retained, testing::IsEmpty());
}

TEST_F(LoadedDriverTest, PeerAccessThatIsThereAlreadyIsFineAndNoneAtAllIsNotSupported) {
  stub_.answers["cuCtxEnablePeerAccess of 1"] = Result::kPeerAccessAlreadyEnabled;
  EXPECT_TRUE(driver().enable_peer_access(0, 1).ok());
  EXPECT_TRUE(driver().enable_peer_access(1, 1).ok());
  EXPECT_THAT(stub_.calls, ElementsAre("cuCtxEnablePeerAccess of 1 in 0"));
  stub_.peers = 0;
  const Status status = driver().enable_peer_access(0, 1);
  EXPECT_EQ(status.code(), ErrorCode::kNotSupported);
  EXPECT_THAT(status.message(), HasSubstr("device 0 cannot reach the memory of device 1"));
}

TEST_F(LoadedDriverTest, MemoryThatCannotBeSharedIsNotSupportedAndSaysWhich) {
  stub_.answers["cuIpcGetMemHandle"] = Result::kInvalidValue;
  const auto handle = driver().export_ipc(0, 0x7000);
  EXPECT_EQ(handle.code(), ErrorCode::kNotSupported);
  EXPECT_THAT(handle.status().message(), HasSubstr("expandable segments"));
  EXPECT_EQ(driver().export_dma_buf(0, 0x7000, 4096).code(), ErrorCode::kNotSupported);
}

}  // namespace
}  // namespace moonpool::transfer::cuda
