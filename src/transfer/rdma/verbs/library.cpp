#include "transfer/rdma/verbs/library.h"

#include <dlfcn.h>
#include <spdlog/fmt/fmt.h>

#include <cstring>
#include <mutex>
#include <string>

#include "base/logging.h"
#include "transfer/rdma/verbs/error_text.h"

namespace moonpool::transfer::rdma {
namespace {

constexpr const char* kVerbsFile = "libibverbs.so.1";
constexpr const char* kConnectionManagerFile = "librdmacm.so.1";
constexpr const char* kVerbsPackages = "rdma-core (Debian and Ubuntu: libibverbs1 ibverbs-providers; RHEL: libibverbs)";
constexpr const char* kConnectionManagerPackages = "librdmacm1 (RHEL: librdmacm)";

// One library, and the first of its functions that is missing.
class Symbols {
 public:
  static Result<Symbols> open(const char* file, const char* packages) {
    void* handle = ::dlopen(file, RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {  // dlerror() would tell more, but is not for several threads; `ldd` tells it too
      return Status(ErrorCode::kNotSupported,
                    fmt::format("{} is not on this host: install {}, or set \"protocol\": \"tcp\"", file, packages));
    }
    return Symbols(file, packages, handle);
  }

  template <typename Function>
  void find(Function& function, const char* name) {
    find_if_there(function, name);
    if (function == nullptr && missing_ == nullptr) missing_ = name;
  }
  template <typename Function>
  void find_if_there(Function& function, const char* name) const {
    function = reinterpret_cast<Function>(::dlsym(handle_, name));
  }
  [[nodiscard]] Status complete() const {
    if (missing_ == nullptr) return {};
    return {ErrorCode::kNotSupported,
            fmt::format("{} on this host is too old, it has no {}: install a newer {}, or set \"protocol\": \"tcp\"", file_, missing_,
                        packages_)};
  }

 private:
  Symbols(const char* file, const char* packages, void* handle) : file_(file), packages_(packages), handle_(handle) {}
  const char* file_;
  const char* packages_;
  void* handle_;  // never closed
  const char* missing_ = nullptr;
};

// A child of fork() shares our registered pages until one of both writes, and the copy that the kernel then makes may be the one that the
// NIC does not know. Kernels from 5.12 copy such pages at the fork; for older ones libibverbs keeps them out of children. It has to be
// told before anything is registered.
void prepare_for_forks(const Verbs& verbs) {
  if (verbs.is_fork_initialized != nullptr && verbs.is_fork_initialized() == IBV_FORK_UNNEEDED) return;
  if (const int error = verbs.fork_init(); error != 0) {
    log::warning("ibv_fork_init: {}; this process must not fork while it has registered memory", error_text(error));
  }
}

template <typename Table>
class Once {
 public:
  template <typename Open>
  Result<const Table*> get(const Open& open) {
    const std::lock_guard lock(mutex_);
    if (table_ == nullptr) {
      auto opened = open();
      if (!opened.ok()) return opened.status();
      table_ = opened->release();  // for ever
    }
    return static_cast<const Table*>(table_);
  }

 private:
  std::mutex mutex_;
  Table* table_ = nullptr;
};

}  // namespace

int Verbs::query_port(ibv_context* context, std::uint8_t port, ibv_port_attr* attributes) const {
  std::memset(attributes, 0, sizeof *attributes);
  if (verbs_context* extended = verbs_get_ctx_op(context, query_port)) {
    return extended->query_port(context, port, attributes, sizeof *attributes);
  }
  return query_port_by_symbol(context, port, reinterpret_cast<_compat_ibv_port_attr*>(attributes));
}

Result<std::unique_ptr<Verbs>> open_verbs(const char* file) {
  auto library = Symbols::open(file, kVerbsPackages);
  if (!library.ok()) return library.status();
  auto verbs = std::make_unique<Verbs>();
  library->find(verbs->get_device_list, "ibv_get_device_list");
  library->find(verbs->free_device_list, "ibv_free_device_list");
  library->find(verbs->get_device_name, "ibv_get_device_name");
  library->find(verbs->get_device_guid, "ibv_get_device_guid");
  library->find(verbs->open_device, "ibv_open_device");
  library->find(verbs->close_device, "ibv_close_device");
  library->find(verbs->get_async_event, "ibv_get_async_event");
  library->find(verbs->ack_async_event, "ibv_ack_async_event");
  library->find(verbs->query_device, "ibv_query_device");
  library->find(verbs->query_port_by_symbol, "ibv_query_port");
  library->find(verbs->query_gid_table, "_ibv_query_gid_table");
  library->find(verbs->alloc_pd, "ibv_alloc_pd");
  library->find(verbs->dealloc_pd, "ibv_dealloc_pd");
  library->find(verbs->reg_mr, "ibv_reg_mr");
  library->find_if_there(verbs->reg_dmabuf_mr, "ibv_reg_dmabuf_mr");
  library->find(verbs->dereg_mr, "ibv_dereg_mr");
  library->find(verbs->create_comp_channel, "ibv_create_comp_channel");
  library->find(verbs->destroy_comp_channel, "ibv_destroy_comp_channel");
  library->find(verbs->create_cq, "ibv_create_cq");
  library->find(verbs->destroy_cq, "ibv_destroy_cq");
  library->find(verbs->get_cq_event, "ibv_get_cq_event");
  library->find(verbs->ack_cq_events, "ibv_ack_cq_events");
  library->find(verbs->create_qp, "ibv_create_qp");
  library->find(verbs->modify_qp, "ibv_modify_qp");
  library->find(verbs->destroy_qp, "ibv_destroy_qp");
  library->find(verbs->wc_status_str, "ibv_wc_status_str");
  library->find(verbs->event_type_str, "ibv_event_type_str");
  library->find(verbs->fork_init, "ibv_fork_init");
  library->find_if_there(verbs->is_fork_initialized, "ibv_is_fork_initialized");
  MOONPOOL_RETURN_IF_ERROR(library->complete());
  return verbs;
}

Result<std::unique_ptr<ConnectionManagerLibrary>> open_connection_manager_library(const char* file) {
  auto library = Symbols::open(file, kConnectionManagerPackages);
  if (!library.ok()) return library.status();
  auto manager = std::make_unique<ConnectionManagerLibrary>();
  library->find(manager->create_event_channel, "rdma_create_event_channel");
  library->find(manager->destroy_event_channel, "rdma_destroy_event_channel");
  library->find(manager->create_id, "rdma_create_id");
  library->find(manager->destroy_id, "rdma_destroy_id");
  library->find(manager->bind_addr, "rdma_bind_addr");
  library->find(manager->listen, "rdma_listen");
  library->find(manager->resolve_addr, "rdma_resolve_addr");
  library->find(manager->resolve_route, "rdma_resolve_route");
  library->find(manager->connect, "rdma_connect");
  library->find(manager->establish, "rdma_establish");
  library->find(manager->accept, "rdma_accept");
  library->find(manager->reject, "rdma_reject");
  library->find(manager->disconnect, "rdma_disconnect");
  library->find(manager->init_qp_attr, "rdma_init_qp_attr");
  library->find(manager->set_option, "rdma_set_option");
  library->find(manager->get_cm_event, "rdma_get_cm_event");
  library->find(manager->ack_cm_event, "rdma_ack_cm_event");
  library->find(manager->get_src_port, "rdma_get_src_port");
  library->find(manager->event_str, "rdma_event_str");
  MOONPOOL_RETURN_IF_ERROR(library->complete());
  return manager;
}

Result<const Verbs*> verbs() {
  static Once<Verbs> once;
  return once.get([]() -> Result<std::unique_ptr<Verbs>> {
    auto opened = open_verbs(kVerbsFile);
    if (opened.ok()) prepare_for_forks(**opened);
    return opened;
  });
}

Result<const ConnectionManagerLibrary*> connection_manager_library() {
  static Once<ConnectionManagerLibrary> once;
  return once.get([] { return open_connection_manager_library(kConnectionManagerFile); });
}

}  // namespace moonpool::transfer::rdma
