// The arguments of the store's calls, read from Python once and in a form that stays valid while the interpreter lock is released.
//
// Keys are views into the str objects themselves (their UTF-8 form, which CPython caches), so a batch of keys costs no copy; the objects
// are held until the call ends, because another Python thread may change the list meanwhile. Addresses and sizes are copied as integers,
// and nested lists into one flat array. Anything that has __index__ counts as an integer, so numpy integers do.
//
// A wrong type is a TypeError, raised by nanobind with the call's signature (of a row that is read later, by the call); a value out of range too. What is of the right type but
// makes no sense (lengths that differ, null pointers) is left to the call, which answers it with a code per key.
// Threads: built and destroyed with the interpreter lock held; read without it.
#pragma once

#include <Python.h>
#include <nanobind/nanobind.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "transfer/transport.h"

namespace moonpool::python {

class Keys {
 public:
  [[nodiscard]] std::span<const std::string_view> views() const { return views_; }
  [[nodiscard]] std::size_t size() const { return views_.size(); }
  // False when `source` is not a sequence of str (a str itself is not one: it would be taken for its letters).
  bool read(PyObject* source);

 private:
  std::vector<nanobind::object> held_;
  std::vector<std::string_view> views_;
};

// list[int]: addresses or sizes.
struct Numbers {
  std::vector<std::uint64_t> values;
  [[nodiscard]] std::size_t size() const { return values.size(); }
  bool read(PyObject* source);
};

// list[list[int]].
class NestedNumbers {
 public:
  [[nodiscard]] std::size_t size() const { return ends_.size(); }
  [[nodiscard]] std::span<const std::uint64_t> operator[](std::size_t row) const {
    const std::size_t begin = row == 0 ? 0 : ends_[row - 1];
    return std::span(values_).subspan(begin, ends_[row] - begin);
  }
  bool read(PyObject* source);
  // One more row; false when it is no sequence of integers.
  bool append(PyObject* row);

 private:
  std::vector<std::uint64_t> values_;
  std::vector<std::size_t> ends_;
};

// list[list[int]] whose rows are read when they are wanted, so that the bytes of the first rows can be on their way meanwhile. The outer
// list is copied, so it keeps its length; rows are read with the interpreter lock held.
class LazyRows {
 public:
  [[nodiscard]] std::size_t size() const { return static_cast<std::size_t>(PyTuple_GET_SIZE(rows_.ptr())); }
  [[nodiscard]] PyObject* operator[](std::size_t row) const { return PyTuple_GET_ITEM(rows_.ptr(), static_cast<Py_ssize_t>(row)); }
  bool read(PyObject* source);  // false when it is no sequence; says nothing of its rows

 private:
  nanobind::object rows_;
};

// list[list[list[int]]].
struct DeepNumbers {
  std::vector<NestedNumbers> rows;
  bool read(PyObject* source);
};

// list[list[str]].
struct NestedKeys {
  std::vector<Keys> rows;
  bool read(PyObject* source);
};

// The bytes of any object with the buffer protocol, in C order whatever its strides, and held while this lives.
class Bytes {
 public:
  [[nodiscard]] transfer::ConstBytes view() const { return view_; }
  bool read(PyObject* source);

 private:
  struct Release {
    void operator()(Py_buffer* buffer) const;
  };
  std::unique_ptr<Py_buffer, Release> buffer_;
  std::vector<std::byte> copy_;  // only of what is not contiguous
  transfer::ConstBytes view_;
};

// list[Buffer].
struct BytesList {
  std::vector<Bytes> items;
  bool read(PyObject* source);
};

// An unsigned integer; false for anything else, with no Python error left set.
bool read_number(PyObject* source, std::uint64_t& value);

}  // namespace moonpool::python

namespace nanobind::detail {

// Python to C++ only, by T::read.
template <typename T>
struct ReadingCaster {
  bool from_python(handle source, std::uint32_t, cleanup_list*) noexcept {
    try {
      return value.read(source.ptr());
    } catch (...) {  // out of memory
      PyErr_Clear();
      return false;
    }
  }
  template <typename T_>
  using Cast = movable_cast_t<T_>;
  template <typename T_>
  static constexpr bool can_cast() {
    return true;
  }
  explicit operator T*() { return &value; }
  explicit operator T&() { return value; }
  explicit operator T&&() { return static_cast<T&&>(value); }
  T value;
};

#define MOONPOOL_READING_CASTER(type, text)                                                \
  template <>                                                                              \
  struct type_caster<::moonpool::python::type> : ReadingCaster<::moonpool::python::type> { \
    using Value = ::moonpool::python::type;                                                \
    static constexpr auto Name = const_name(text);                                         \
  }
MOONPOOL_READING_CASTER(Keys, "list[str]");
MOONPOOL_READING_CASTER(Numbers, "list[int]");
MOONPOOL_READING_CASTER(NestedNumbers, "list[list[int]]");
MOONPOOL_READING_CASTER(LazyRows, "list[list[int]]");
MOONPOOL_READING_CASTER(DeepNumbers, "list[list[list[int]]]");
MOONPOOL_READING_CASTER(NestedKeys, "list[list[str]]");
MOONPOOL_READING_CASTER(Bytes, "Buffer");
MOONPOOL_READING_CASTER(BytesList, "list[Buffer]");
#undef MOONPOOL_READING_CASTER

}  // namespace nanobind::detail
