// The extension module mooncake._native: everything of the drop-in that is C++, behind the thin Python modules mooncake.store and
// mooncake.engine. One module for both, so that they share one set of the C++ libraries.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string_view.h>

#include "base/logging.h"
#include "python/bindings/buffers.h"
#include "python/bindings/engine.h"
#include "python/bindings/enums.h"
#include "python/bindings/gil.h"
#include "python/bindings/replicate_config.h"
#include "python/bindings/store.h"
#include "transfer/cuda/runtime.h"

namespace nb = nanobind;
using nb::literals::operator""_a;

namespace {

// The device that an address belongs to; -1 for host memory, and in a process without CUDA.
int device_of(std::uint64_t address) {
  return moonpool::python::without_gil([&] {
    const auto* runtime = moonpool::transfer::cuda::Runtime::of_process();
    return runtime == nullptr ? -1 : runtime->device_of(reinterpret_cast<const void*>(address)).value_or(-1);
  });
}

}  // namespace

NB_MODULE(_native, module) {
  // Objects that live until the interpreter's end are ordinary here, and its exit is to be silent.
  nb::set_leak_warnings(false);
  module.def("configure_log", &moonpool::log::configure, "component"_a, "level"_a = "", "One line an event to standard error.");
  module.def("log_warning", [](std::string_view text) { moonpool::log::warning("{}", text); });
  module.def("log_error", [](std::string_view text) { moonpool::log::error("{}", text); });

  module.def("device_of", &device_of, "address"_a, "The CUDA device that an address belongs to; -1: the host's memory.");

  nb::module_ store = module.def_submodule("store", "The pool's client.");
  store.attr("__name__") = "mooncake.store";
  moonpool::python::bind_enums(store);
  moonpool::python::bind_replicate_config(store);
  moonpool::python::bind_buffers(store);
  moonpool::python::bind_store(store);

  nb::module_ engine = module.def_submodule("engine", "The transfer engine.");
  engine.attr("__name__") = "mooncake.engine";
  moonpool::python::bind_engine(engine);
}
