// Every call that may wait for a peer runs through here, so that other Python threads make progress meanwhile.
//
// A daemon thread may come back when the interpreter has ended already. CPython then ends the thread by unwinding its stack, which C++
// answers with std::terminate in the first destructor; so the thread is parked instead, until the process has gone.
#pragma once

#include <Python.h>
#include <cxxabi.h>
#include <unistd.h>

#include <utility>

namespace moonpool::python {

class GilReleased {
 public:
  GilReleased() : state_(PyEval_SaveThread()) {}
  GilReleased(const GilReleased&) = delete;
  GilReleased& operator=(const GilReleased&) = delete;
  ~GilReleased() {
    try {
      PyEval_RestoreThread(state_);
    } catch (const abi::__forced_unwind&) {
      while (true) pause();
    }
  }

 private:
  PyThreadState* state_;
};

template <typename Function>
decltype(auto) without_gil(Function&& function) {
  const GilReleased released;
  return std::forward<Function>(function)();
}

}  // namespace moonpool::python
