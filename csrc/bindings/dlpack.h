// The part of DLPack's C exchange interface, version 1, that reads a tensor without owning it
// (https://dmlc.github.io/dlpack). Plain C data: a framework fills it in, no header of it is needed.
#pragma once

#include <cstdint>

namespace wpadamw::dlpack {

constexpr uint32_t kMajorVersion = 1;

struct Device {
  int32_t type;
  int32_t id;
};

struct DataType {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
};

constexpr DataType kFloat32{2, 32, 1};

struct Tensor {
  void* data;
  Device device;
  int32_t ndim;
  DataType dtype;
  int64_t* shape;    // [ndim], the framework's own memory
  int64_t* strides;  // [ndim], in elements
  uint64_t byte_offset;
};

// What the capsule `__dlpack_c_exchange_api__` of a tensor type points to.
struct ExchangeApi {
  struct {
    uint32_t major, minor;
  } version;
  void* previous;
  void* allocate;
  void* export_owned;
  void* import_owned;
  int (*borrow)(void* py_object, Tensor* out);  // 0, or -1 with a Python exception; may be null
  void* current_stream;
};

}  // namespace wpadamw::dlpack
