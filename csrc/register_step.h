/* The arguments of the step operators as the dispatcher hands them over, and their tensors as
 * absgd_sgd_step takes them, on any device. Taken off the stack by hand: TORCH_BOX makes three
 * allocations of each tensor, which for a small model take longer than the step. */
#ifndef ABSGD_REGISTER_STEP_H
#define ABSGD_REGISTER_STEP_H

#include "checks.h"
#include "register.h"

#include <algorithm>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <utility>

namespace absgd {

/* A list of tensors, owned. */
class TensorList {
  public:
    explicit TensorList(StableIValue boxed) {
        auto list = torch::stable::detail::to<StableListHandle>(boxed);
        size_t n = 0;
        torch_list_size(list, &n);
        handles_.reserve(n);
        for (size_t i = 0; i < n; i++) {
            StableIValue item;
            torch_list_get_item(list, i, &item);
            handles_.push_back(torch::stable::detail::to<AtenTensorHandle>(item));
        }
        torch_delete_list(list);
    }
    TensorList(TensorList &&other) : handles_(std::move(other.handles_)) {}
    ~TensorList() {
        for (AtenTensorHandle handle : handles_) aoti_torch_delete_tensor_object(handle);
    }

    size_t size() const { return handles_.size(); }
    AtenTensorHandle operator[](size_t i) const { return handles_[i]; }

  private:
    std::vector<AtenTensorHandle> handles_;
};

/* What a step writes; momenta may be empty. */
struct StepRecord {
    TensorList params, momenta;

    StepRecord(StableIValue params, StableIValue momenta) : params(params), momenta(momenta) {}
};

/* Lists that outlive a call, so that a step need not hand them over again. A record holds the
 * tensors, not what they were like. Ids are never used twice. */
class StepRecords {
  public:
    static StepRecords &here() {
        static StepRecords *records = new StepRecords; /* tensors may not be freed after torch */
        return *records;
    }

    int64_t add(std::shared_ptr<const StepRecord> record) {
        const std::lock_guard<std::mutex> lock(mutex_);
        records_[++last_] = std::move(record);
        return last_;
    }

    std::shared_ptr<const StepRecord> find(int64_t id) {
        const std::lock_guard<std::mutex> lock(mutex_);
        const auto found = records_.find(id);
        STD_TORCH_CHECK(found != records_.end(), "no step record has the id ", id);
        return found->second;
    }

    void forget(int64_t id) {
        std::shared_ptr<const StepRecord> record; /* freed when the lock is open again */
        const std::lock_guard<std::mutex> lock(mutex_);
        const auto found = records_.find(id);
        if (found == records_.end()) return;
        record = std::move(found->second);
        records_.erase(found);
    }

  private:
    std::mutex mutex_;
    std::unordered_map<int64_t, std::shared_ptr<const StepRecord>> records_;
    int64_t last_ = 0;
};

struct StepArguments {
    TensorList grads;
    bool fresh;
    double lr;
    std::optional<Tensor> lr_tensor;
    double momentum, dampening, weight_decay;
    bool nesterov, maximize, polyak;
    std::optional<Tensor> grad_scale, found_inf;
    std::shared_ptr<const StepRecord> written;

    /* sgd_step_(params, grads, momenta, fresh, rest …) */
    static StepArguments of_lists(StableIValue *stack) {
        auto written = std::make_shared<const StepRecord>(stack[0], stack[2]);
        StepArguments a(stack[1], to<bool>(stack[3]), stack + 4);
        a.written = std::move(written);
        return a;
    }

    /* sgd_step_recorded(record, grads, rest …) */
    static StepArguments of_record(StableIValue *stack) {
        StepArguments a(stack[1], false, stack + 2);
        a.written = StepRecords::here().find(to<int64_t>(stack[0]));
        return a;
    }

  private:
    StepArguments(StableIValue grads, bool fresh, StableIValue *rest)
        : grads(grads), fresh(fresh), lr(to<double>(rest[0])),
          lr_tensor(to<std::optional<Tensor>>(rest[1])), momentum(to<double>(rest[2])),
          dampening(to<double>(rest[3])), weight_decay(to<double>(rest[4])),
          nesterov(to<bool>(rest[5])), maximize(to<bool>(rest[6])), polyak(to<bool>(rest[7])),
          grad_scale(to<std::optional<Tensor>>(rest[8])),
          found_inf(to<std::optional<Tensor>>(rest[9])) {}

    template <class T> static T to(StableIValue value) {
        return torch::stable::detail::to<T>(value);
    }
};

/* sgd_record(params, momenta) -> int and sgd_forget(record), the same on every device */
inline void sgd_record(StableIValue *stack, uint64_t, uint64_t) {
    auto record = std::make_shared<const StepRecord>(stack[0], stack[1]);
    stack[0] = torch::stable::detail::from(StepRecords::here().add(std::move(record)));
}

inline void sgd_forget(StableIValue *stack, uint64_t, uint64_t) {
    StepRecords::here().forget(torch::stable::detail::to<int64_t>(stack[0]));
}

/* What the step has to know of a tensor, read anew at each step. */
struct TensorFacts {
    int32_t dtype, device_type, device_index;
    int64_t dim, numel;
    int64_t *sizes, *strides;
    bool is_contiguous;

    explicit TensorFacts(AtenTensorHandle t) {
        TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(t, &dtype));
        TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(t, &device_type));
        TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(t, &device_index));
        TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(t, &dim));
        TORCH_ERROR_CODE_CHECK(aoti_torch_get_numel(t, &numel));
        TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(t, &sizes));
        TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(t, &strides));
        TORCH_ERROR_CODE_CHECK(aoti_torch_is_contiguous(t, &is_contiguous));
    }

    bool same_place(const TensorFacts &o) const {
        return device_type == o.device_type && device_index == o.device_index;
    }

    bool like(const TensorFacts &o) const {
        return dtype == o.dtype && same_place(o) && dim == o.dim &&
               std::equal(sizes, sizes + dim, o.sizes);
    }

    bool same_layout(const TensorFacts &o) const {
        if (is_contiguous && o.is_contiguous) return true;
        for (int64_t d = 0; d < dim; d++) {
            if (sizes[d] != 1 && strides[d] != o.strides[d]) return false;
        }
        return true;
    }

    /* Whether elements lie in memory without gaps or overlaps, in whatever order of dimensions. */
    bool is_dense() const { return is_contiguous || (reach() == numel && !overlaps_itself()); }

    /* Whether an element may lie where another does. */
    bool overlaps_itself() const {
        if (is_contiguous) return false;
        std::vector<std::pair<int64_t, int64_t>> dims; /* stride, size */
        for (int64_t d = 0; d < dim; d++) {
            if (sizes[d] != 1) dims.emplace_back(strides[d], sizes[d]);
        }
        std::sort(dims.begin(), dims.end());
        int64_t last = 0; /* element that the dimensions so far reach */
        for (auto [stride, size] : dims) {
            if (stride <= last) return true;
            last += stride * (size - 1);
        }
        return false;
    }

    /* Elements from the first to the last in memory, of a tensor that is not empty. */
    int64_t reach() const {
        if (is_contiguous) return numel;
        int64_t last = 0;
        for (int64_t d = 0; d < dim; d++) last += strides[d] * (sizes[d] - 1);
        return last + 1;
    }
};

/* The memory of a step's tensors: what it writes must not be anything else's, for it is written by
 * one thread, and read by none but it. */
class StepMemory {
  public:
    void add(const void *data, const TensorFacts &facts, int64_t size, bool is_written) {
        if (facts.numel == 0) return;
        STD_TORCH_CHECK(!is_written || !facts.overlaps_itself(),
                        "params and momenta must not share memory with themselves");
        const char *begin = static_cast<const char *>(data);
        (is_written ? written_ : read_).emplace_back(begin, begin + facts.reach() * size);
    }

    void check() {
        std::sort(written_.begin(), written_.end());
        for (size_t i = 1; i < written_.size(); i++) {
            STD_TORCH_CHECK(written_[i - 1].second <= written_[i].first,
                            "params and momenta must not share memory");
        }
        for (const Span &grad : read_) {
            const auto after =
                std::lower_bound(written_.begin(), written_.end(), grad.second,
                                 [](const Span &s, const char *end) { return s.first < end; });
            STD_TORCH_CHECK(after == written_.begin() || std::prev(after)->second <= grad.first,
                            "grads must not share memory with params or momenta");
        }
    }

    void reserve(size_t written, size_t read) {
        written_.reserve(written);
        read_.reserve(read);
    }

  private:
    using Span = std::pair<const char *, const char *>;
    std::vector<Span> written_, read_;
};

/* The tensors of a step by dtype. Those that are not dense, or not laid out alike, are copied, and
 * what the step has written is copied back by write_back(). */
class StepTensors {
  public:
    std::vector<absgd_tensor> of[4]; /* absgd_dtype */

    explicit StepTensors(const StepArguments &a) {
        const TensorList &params = a.written->params, &momenta = a.written->momenta;
        const size_t n = params.size();
        STD_TORCH_CHECK(a.grads.size() == n && (momenta.size() == 0 || momenta.size() == n),
                        "params, grads and momenta must have one length (momenta may be empty), ",
                        "got ", n, ", ", a.grads.size(), " and ", momenta.size());
        if (n == 0) return;
        const TensorFacts first(params[0]);
        of[dtype_of(first, 0)].reserve(n);
        memory_.reserve(n + momenta.size(), n);
        for (size_t i = 0; i < n; i++) {
            const TensorFacts w(params[i]), g(a.grads[i]);
            STD_TORCH_CHECK(w.same_place(first), "params[", i,
                            "] must be on the device of params[0]");
            check_alike(g, w, i, "grads");
            const absgd_dtype dtype = dtype_of(w, i);
            const int64_t size = absgd_size_of(dtype);
            bool as_is = w.is_dense() && g.same_layout(w);
            void *velocity = nullptr;
            if (momenta.size() != 0) {
                const TensorFacts v(momenta[i]);
                check_alike(v, w, i, "momenta");
                as_is = as_is && v.same_layout(w);
                velocity = memory(momenta[i], v, size, as_is, true);
            }
            void *param = memory(params[i], w, size, as_is, true);
            void *grad = memory(a.grads[i], g, size, as_is, false);
            of[dtype].push_back({param, grad, velocity, w.numel, a.fresh});
        }
        memory_.check();
    }

    void write_back() {
        for (auto &[original, copy] : written_) torch::stable::copy_(original, copy);
    }

  private:
    static absgd_dtype dtype_of(const TensorFacts &t, size_t i) {
        if (t.dtype == aoti_torch_dtype_float32()) return ABSGD_FLOAT32;
        if (t.dtype == aoti_torch_dtype_float64()) return ABSGD_FLOAT64;
        if (t.dtype == aoti_torch_dtype_float16()) return ABSGD_FLOAT16;
        STD_TORCH_CHECK(t.dtype == aoti_torch_dtype_bfloat16(), "params[", i,
                        "] must be float32, float64, float16 or bfloat16");
        return ABSGD_BFLOAT16;
    }

    static void check_alike(const TensorFacts &t, const TensorFacts &param, size_t i,
                            const char *name) {
        STD_TORCH_CHECK(t.like(param), name, "[", i,
                        "] must have the dtype, shape and device of params[", i, "]");
    }

    void *memory(AtenTensorHandle t, const TensorFacts &facts, int64_t size, bool as_is,
                 bool written) {
        void *data = nullptr;
        TORCH_ERROR_CODE_CHECK(torch_get_mutable_data_ptr(t, &data));
        memory_.add(data, facts, size, written);
        if (as_is || facts.is_contiguous) {
            check_storage(t, facts, size);
            return data;
        }
        AtenTensorHandle shared;
        TORCH_ERROR_CODE_CHECK(aoti_torch_new_tensor_handle(t, &shared));
        const Tensor original(shared);
        copies_.push_back(torch::stable::contiguous(original));
        if (written) written_.emplace_back(original, copies_.back());
        return copies_.back().mutable_data_ptr();
    }

    /* A storage may be smaller than its tensors say: resize_() of a storage does not look at them.
     */
    static void check_storage(AtenTensorHandle t, const TensorFacts &facts, int64_t size) {
        int64_t bytes, offset;
        TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(t, &bytes));
        TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_offset(t, &offset));
        STD_TORCH_CHECK(facts.numel == 0 || bytes / size - offset >= facts.numel, "a tensor of ",
                        facts.numel, " elements has a storage of ", bytes, " bytes");
    }

    StepMemory memory_;
    std::vector<Tensor> copies_;
    std::vector<std::pair<Tensor, Tensor>> written_;
};

} // namespace absgd
#endif
