#include "python/bindings/arguments.h"

#include <algorithm>

namespace moonpool::python {

namespace nb = nanobind;

namespace {

// Sequences that are not meant as lists: a str would be taken for its letters.
bool is_no_list(PyObject* source) {
  return PyUnicode_Check(source) || PyBytes_Check(source) || PyDict_Check(source) || PyAnySet_Check(source);
}

// Calls `each` with every item of a sequence; false when `source` is none, or when `each` says so. The items are held during the call only.
template <typename Each>
bool for_each_item(PyObject* source, Each each) {
  if (is_no_list(source)) return false;
  const auto items = nb::steal<nb::object>(PySequence_Fast(source, ""));
  if (!items.is_valid()) {
    PyErr_Clear();
    return false;
  }
  // The size is read anew each time: __index__ of an item may run Python code that changes the list.
  for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(items.ptr()); ++i) {
    const nb::object item = nb::borrow<nb::object>(PySequence_Fast_GET_ITEM(items.ptr(), i));
    if (!each(item)) return false;
  }
  return true;
}

// The value of an int of at most two of CPython's digits of 30 bits, as sizes are and addresses of user space below 2^60; false for others.
// The call that takes all of them costs several times as much, and a batch has tens of thousands of numbers.
bool read_small_int(PyObject* source, std::uint64_t& value) {
#if PYLONG_BITS_IN_DIGIT == 30 && PY_VERSION_HEX < 0x030f0000
  const auto* const number = reinterpret_cast<const PyLongObject*>(source);
#if PY_VERSION_HEX >= 0x030c0000
  constexpr std::uintptr_t kPositive = 0;
  const auto tag = number->long_value.lv_tag;
  const digit* const digits = number->long_value.ob_digit;
  if ((tag & 3U) != kPositive || tag >> 3U > 2) return false;
  value = digits[0] | (tag >> 3U == 2 ? std::uint64_t{digits[1]} << 30U : 0);
#else
  const Py_ssize_t count = Py_SIZE(number);
  if (count < 1 || count > 2) return false;
  value = number->ob_digit[0] | (count == 2 ? std::uint64_t{number->ob_digit[1]} << 30U : 0);
#endif
  return true;
#else
  return false;
#endif
}

// An exact int; false, with no Python error left, for one that does not fit.
bool read_int(PyObject* source, std::uint64_t& value) {
  if (read_small_int(source, value)) return true;
  value = PyLong_AsUnsignedLongLong(source);
  if (value != static_cast<std::uint64_t>(-1) || PyErr_Occurred() == nullptr) return true;
  PyErr_Clear();
  return false;
}

// Appends the integers of a sequence. Exact ints in a list or tuple, the usual case, are read in place: no Python code runs meanwhile, so
// the items need no reference of their own.
bool append_numbers(PyObject* source, std::vector<std::uint64_t>& values) {
  if (PyList_CheckExact(source) || PyTuple_CheckExact(source)) {
    const auto count = static_cast<std::size_t>(PySequence_Fast_GET_SIZE(source));
    PyObject* const* items = PySequence_Fast_ITEMS(source);
    const std::size_t first = values.size();
    values.resize(first + count);
    std::size_t done = 0;
    while (done < count && PyLong_CheckExact(items[done]) && read_int(items[done], values[first + done])) ++done;
    if (done == count) return true;
    if (PyLong_CheckExact(items[done])) return false;
    values.resize(first);
  }
  return for_each_item(source, [&](const nb::object& item) { return read_number(item.ptr(), values.emplace_back()); });
}

std::size_t length_hint(PyObject* source) {
  const Py_ssize_t length = PyObject_Size(source);
  if (length < 0) {
    PyErr_Clear();
    return 0;
  }
  return static_cast<std::size_t>(length);
}

template <typename Row>
bool read_rows(PyObject* source, std::vector<Row>& rows) {
  rows.clear();
  return for_each_item(source, [&](const nb::object& item) { return rows.emplace_back().read(item.ptr()); });
}

}  // namespace

bool read_number(PyObject* source, std::uint64_t& value) {
  nb::object index;
  if (!PyLong_CheckExact(source)) {
    index = nb::steal<nb::object>(PyNumber_Index(source));
    if (!index.is_valid()) {
      PyErr_Clear();
      return false;
    }
    source = index.ptr();
  }
  return read_int(source, value);
}

bool Keys::read(PyObject* source) {
  const std::size_t expected = length_hint(source);
  held_.reserve(expected);
  views_.reserve(expected);
  return for_each_item(source, [&](const nb::object& item) {
    if (!PyUnicode_Check(item.ptr())) return false;
    Py_ssize_t length = 0;
    const char* text = PyUnicode_AsUTF8AndSize(item.ptr(), &length);
    if (text == nullptr) {
      PyErr_Clear();
      return false;
    }
    held_.push_back(item);
    views_.emplace_back(text, static_cast<std::size_t>(length));
    return true;
  });
}

bool Numbers::read(PyObject* source) {
  values.reserve(length_hint(source));
  return append_numbers(source, values);
}

bool NestedNumbers::read(PyObject* source) {
  ends_.reserve(length_hint(source));
  return for_each_item(source, [&](const nb::object& row) {
    const bool fine = append(row.ptr());
    // Rows are mostly of one length.
    if (ends_.size() == 1) values_.reserve(values_.size() * ends_.capacity());
    return fine;
  });
}

bool NestedNumbers::append(PyObject* row) {
  const bool fine = append_numbers(row, values_);
  ends_.push_back(values_.size());
  return fine;
}

bool LazyRows::read(PyObject* source) {
  if (is_no_list(source)) return false;
  rows_ = nb::steal<nb::object>(PySequence_Tuple(source));
  if (rows_.is_valid()) return true;
  PyErr_Clear();
  return false;
}

bool DeepNumbers::read(PyObject* source) { return read_rows(source, rows); }
bool NestedKeys::read(PyObject* source) { return read_rows(source, rows); }
bool BytesList::read(PyObject* source) { return read_rows(source, items); }

void Bytes::Release::operator()(Py_buffer* buffer) const {
  PyBuffer_Release(buffer);
  delete buffer;
}

bool Bytes::read(PyObject* source) {
  auto buffer = std::make_unique<Py_buffer>();
  if (PyObject_GetBuffer(source, buffer.get(), PyBUF_FULL_RO) != 0) {
    PyErr_Clear();
    return false;
  }
  buffer_.reset(buffer.release());
  const auto length = static_cast<std::size_t>(buffer_->len);
  if (PyBuffer_IsContiguous(buffer_.get(), 'C') != 0) {
    view_ = {static_cast<const std::byte*>(buffer_->buf), length};
    return true;
  }
  copy_.resize(length);
  if (PyBuffer_ToContiguous(copy_.data(), buffer_.get(), buffer_->len, 'C') != 0) {
    PyErr_Clear();
    return false;
  }
  view_ = copy_;
  return true;
}

}  // namespace moonpool::python
