/*
cuDNN's frontend for on_cpu.h, which includes this file: causal attention forward and backward by
plain loops, as far as the trainer uses it. Names and arguments are those of cudnn_frontend.h.

    CUDA_ON_CPU_CUDNN=91300               its version; without it the library is not found
    CUDA_ON_CPU_CUDNN_REFUSES=backward    or forward: no plan for that pass
*/
#pragma once
#include <memory>
#include <stdexcept>
#include <unordered_map>
#define HAS_CUDNN
#define CUDART_VERSION         13000
#define CUDNN_VERSION          91300 // of the headers
#define CUDNN_FRONTEND_VERSION 13200

typedef struct OnCpuCudnn {
    cudaStream_t stream = NULL; // the default one, which is not the trainer's
} * cudnnHandle_t;
typedef enum { CUDNN_STATUS_SUCCESS } cudnnStatus_t;
namespace on_cpu {
inline void *library_open(const char *name, int) {
    return strstr(name, "cudnn") && setting("CUDA_ON_CPU_CUDNN", 0) ? (void *)&device_used : NULL;
}
inline char library_missing[] = "libcudnn.so.9: cannot open shared object file";
} // namespace on_cpu
#define dlopen    on_cpu::library_open
#define dlerror() on_cpu::library_missing

namespace cudnn_frontend {
extern void *cudnn_dlhandle;
enum class DataType_t { FLOAT, HALF, BFLOAT16 };
enum class HeurMode_t { A };
struct error_t {
    std::string message;
    bool is_good() const { return message.empty(); }
    std::string get_message() { return message; }
};
namespace detail {
inline cudnnStatus_t create_handle(cudnnHandle_t *h) {
    return *h = new OnCpuCudnn(), CUDNN_STATUS_SUCCESS;
}
inline cudnnStatus_t set_stream(cudnnHandle_t h, cudaStream_t s) {
    return h->stream = s, CUDNN_STATUS_SUCCESS;
}
inline size_t get_backend_version() { return (size_t)on_cpu::setting("CUDA_ON_CPU_CUDNN", 0); }
} // namespace detail
namespace graph {
#define ON_CPU_SETTER(type, what, T)                                                               \
    type &set_##what(T value) { return what = value, *this; }
struct Tensor_attributes {
    std::string name;
    std::vector<int64_t> dim, stride; // [B, NH, T, width]
    int64_t uid = 0;
    DataType_t data_type = DataType_t::HALF;
    bool typed = false, output = false;
    ON_CPU_SETTER(Tensor_attributes, name, std::string)
    ON_CPU_SETTER(Tensor_attributes, dim, std::vector<int64_t>)
    ON_CPU_SETTER(Tensor_attributes, stride, std::vector<int64_t>)
    ON_CPU_SETTER(Tensor_attributes, uid, int64_t)
    ON_CPU_SETTER(Tensor_attributes, output, bool)
    Tensor_attributes &set_data_type(DataType_t t) { return data_type = t, typed = true, *this; }
};
typedef std::shared_ptr<Tensor_attributes> Tensor;
struct SDPA_attributes {
    bool generate_stats = false, causal_mask = false;
    float attn_scale = 1;
    ON_CPU_SETTER(SDPA_attributes, generate_stats, bool)
    ON_CPU_SETTER(SDPA_attributes, causal_mask, bool)
    ON_CPU_SETTER(SDPA_attributes, attn_scale, float)
};
struct SDPA_backward_attributes {
    bool causal_mask = false, deterministic_algorithm = false;
    float attn_scale = 1;
    ON_CPU_SETTER(SDPA_backward_attributes, causal_mask, bool)
    ON_CPU_SETTER(SDPA_backward_attributes, attn_scale, float)
    ON_CPU_SETTER(SDPA_backward_attributes, deterministic_algorithm, bool)
};

class Graph {
    DataType_t io_data_type = DataType_t::HALF, intermediate_data_type = DataType_t::FLOAT,
               compute_data_type = DataType_t::FLOAT;
    bool well_masked = false; // as the trainer wants it
    float scale = 1;
    // Forward: q, k, v, out, lse; backward: q, k, v, out, dout, lse, dq, dk, dv.
    std::vector<Tensor> t;
    bool planned = false;

    struct View { // of a tensor, as numbers
        char *p;
        Tensor_attributes a;
        DataType_t type;
        char *at(int64_t b, int64_t h, int64_t i, int64_t c) const {
            return p + (b * a.stride[0] + h * a.stride[1] + i * a.stride[2] + c * a.stride[3]) *
                           (type == DataType_t::FLOAT ? 4 : 2);
        }
        float get(int64_t b, int64_t h, int64_t i, int64_t c) const {
            const void *from = at(b, h, i, c);
            return type == DataType_t::FLOAT  ? *(const float *)from
                   : type == DataType_t::HALF ? on_cpu::fp16_float(*(const uint16_t *)from)
                                              : on_cpu::bf16_float(*(const uint16_t *)from);
        }
        void put(int64_t b, int64_t h, int64_t i, int64_t c, double value) const {
            void *to = at(b, h, i, c);
            if (type == DataType_t::FLOAT) *(float *)to = (float)value;
            else
                *(uint16_t *)to =
                    type == DataType_t::HALF ? cvt_fp16((float)value) : cvt_bf16((float)value);
        }
    };
    Tensor made() { return t.push_back(std::make_shared<Tensor_attributes>()), t.back(); }
    // One head of one sequence. x: the tensors in the order of t.
    static void head(const std::vector<View> &x, int64_t b, int64_t h, float scale) {
        const int64_t T = x[0].a.dim[2], hs = x[0].a.dim[3];
        const bool backward = x.size() > 5;
        std::vector<double> p((size_t)T), dk((size_t)(T * hs)), dv((size_t)(T * hs)),
            dq((size_t)hs);
        for (int64_t i = 0; i < T; i++) {
            double top = -1e300, sum = 0, delta = 0;
            for (int64_t j = 0; j <= i; j++) {
                double s = 0;
                for (int64_t c = 0; c < hs; c++)
                    s += (double)x[0].get(b, h, i, c) * x[1].get(b, h, j, c);
                p[(size_t)j] = s * scale, top = std::max(top, s * scale);
            }
            for (int64_t j = 0; j <= i; j++) sum += p[(size_t)j] = exp(p[(size_t)j] - top);
            const double lse = top + log(sum);
            for (int64_t j = 0; j <= i; j++) p[(size_t)j] /= sum;
            if (!backward) {
                for (int64_t c = 0; c < hs; c++) {
                    double out = 0;
                    for (int64_t j = 0; j <= i; j++) out += p[(size_t)j] * x[2].get(b, h, j, c);
                    x[3].put(b, h, i, c, out);
                }
                x[4].put(b, h, i, 0, lse);
                continue;
            }
            // the forward pass's own lse has to be there: nats, not the trainer's log2
            ON_CPU_EXPECT(fabs(lse - x[5].get(b, h, i, 0)) <= 1e-3 * (1 + fabs(lse)) ||
                              !(fabs(lse) < 1e30),
                          "cuDNN: row %ld has a log-sum of %g, was given %g", (long)i, lse,
                          (double)x[5].get(b, h, i, 0));
            for (int64_t c = 0; c < hs; c++)
                delta += (double)x[3].get(b, h, i, c) * x[4].get(b, h, i, c), dq[(size_t)c] = 0;
            for (int64_t j = 0; j <= i; j++) {
                double dp = 0;
                for (int64_t c = 0; c < hs; c++)
                    dp += (double)x[4].get(b, h, i, c) * x[2].get(b, h, j, c);
                const double ds = p[(size_t)j] * (dp - delta) * scale;
                for (int64_t c = 0; c < hs; c++) {
                    dq[(size_t)c] += ds * x[1].get(b, h, j, c),
                        dk[(size_t)(j * hs + c)] += ds * x[0].get(b, h, i, c);
                    dv[(size_t)(j * hs + c)] += p[(size_t)j] * x[4].get(b, h, i, c);
                }
            }
            for (int64_t c = 0; c < hs; c++) x[6].put(b, h, i, c, dq[(size_t)c]);
        }
        for (int64_t i = 0; backward && i < T * hs; i++)
            x[7].put(b, h, i / hs, i % hs, dk[(size_t)i]),
                x[8].put(b, h, i / hs, i % hs, dv[(size_t)i]);
    }

  public:
    ON_CPU_SETTER(Graph, io_data_type, DataType_t)
    ON_CPU_SETTER(Graph, intermediate_data_type, DataType_t)
    ON_CPU_SETTER(Graph, compute_data_type, DataType_t)
    Tensor tensor(const Tensor_attributes &a) { return std::make_shared<Tensor_attributes>(a); }
    std::vector<Tensor> outputs;
    struct Pair {
        Tensor a, b;
    };
    struct Triple {
        Tensor a, b, c;
    };
    Pair sdpa(Tensor q, Tensor k, Tensor v, const SDPA_attributes &o) {
        well_masked = o.causal_mask && o.generate_stats, scale = o.attn_scale, t = {q, k, v};
        const Tensor out = made(), lse = made();
        return {out, lse};
    }
    Triple sdpa_backward(Tensor q, Tensor k, Tensor v, Tensor out, Tensor dout, Tensor lse,
                         const SDPA_backward_attributes &o) {
        well_masked = o.causal_mask && o.deterministic_algorithm, scale = o.attn_scale,
        t = {q, k, v, out, dout, lse};
        const Tensor dq = made(), dk = made(), dv = made();
        return {dq, dk, dv};
    }
    error_t validate() {
        const bool backward = t.size() > 5;
        for (size_t i = 0; i < t.size(); i++) {
            if (t[i]->dim.size() != 4 || t[i]->stride.size() != 4 || !t[i]->uid)
                return {"a tensor has no shape or number"};
            if ((i >= (backward ? 6 : 3)) != t[i]->output)
                return {"what is an output and what is not"};
            if (t[i]->dim[3] == 1 && (!t[i]->typed || t[i]->data_type != DataType_t::FLOAT))
                return {"the log-sums are fp32"};
        }
        if (!well_masked) return {"other attention than the trainer's"};
        if (backward && t[0]->dim[2] == 1)
            return {"sdpa_backward needs more than one query or key"}; // as the frontend says
        return {};
    }
    error_t build_operation_graph(cudnnHandle_t h) { return {h ? "" : "no handle"}; }
    error_t create_execution_plans(std::vector<HeurMode_t>) { return {}; }
    error_t check_support(cudnnHandle_t) {
        const char *refuses = getenv("CUDA_ON_CPU_CUDNN_REFUSES");
        return {refuses && !strcmp(refuses, t.size() > 5 ? "backward" : "forward")
                    ? "no engine supports\nthis graph"
                    : ""};
    }
    error_t build_plans(cudnnHandle_t) { return planned = true, error_t(); }
    error_t get_workspace_size(int64_t &bytes) {
        return bytes = t.size() > 5 ? 3 << 20 : 0, error_t();
    }
    error_t execute(cudnnHandle_t h, std::unordered_map<int64_t, void *> &pointers,
                    void *workspace) {
        std::vector<View> x;
        int64_t bytes;
        get_workspace_size(bytes);
        if (!planned) return {"no plan was built"};
        if (!h->stream) return {"it would run on the default stream, beside the trainer's"};
        for (const Tensor &a : t) {
            const DataType_t type = a->typed ? a->data_type : io_data_type;
            char *p = (char *)pointers[a->uid];
            int64_t last = 0;
            for (int i = 0; i < 4; i++) last += (a->dim[(size_t)i] - 1) * a->stride[(size_t)i];
            if (!p || !on_cpu::in_device(p))
                return {"tensor " + a->name + " has no address on the device"};
            on_cpu::range_check(p, (size_t)(last + 1) * (type == DataType_t::FLOAT ? 4 : 2),
                                "cuDNN");
            x.push_back({p, *a, type});
        }
        if (bytes) on_cpu::range_check(workspace, (size_t)bytes, "cuDNN: workspace");
        on_cpu::submit(h->stream, [x, workspace, bytes, scale = scale] {
            if (bytes) memset(workspace, 0xff, (size_t)bytes); // it is the library's
            for (int64_t b = 0; b < x[0].a.dim[0]; b++)
                for (int64_t h = 0; h < x[0].a.dim[1]; h++) head(x, b, h, scale);
        });
        return {};
    }
};
} // namespace graph
} // namespace cudnn_frontend
