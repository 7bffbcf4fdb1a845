// An encoder's two passes in 8-bit integers, for x86 processors with AVX-512 VNNI. mist_fairseq/engines/native.py calls
// it and says what it computes; extern "C" below is all that it sees.
//
// A pass goes through few, large steps: a product ends with its scales, bias and activation or residual in the
// registers, and LayerNorm rounds for the next product while it is at a row. Threads share every step and wait for each
// other after it (Team); the memory that a pass takes is what an earlier one left behind (Workspace).
//
// Rows are packed: N real tokens of B sentences, those of sentence b from starts[b] on. D hidden size, E of embeddings,
// F inner size, H heads, d = D / H, V vocabulary, I inputs and O outputs of a product, P tokens of a source.

#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

namespace {

constexpr int LANES = 16;        // floats in a register
constexpr int BLOCK = 32;        // outputs that a product computes at once, two registers, and
constexpr int ROWS = 14;         // the most rows: 28 of the 32 registers are sums, and matrices are read but once
constexpr int QUERIES = 6;       // the most rows of attention, with four registers of keys or values
constexpr size_t AHEAD = 4096;   // bytes of a matrix that are on their way from memory
constexpr size_t LOGITS = 64;    // rows whose logits there are at a time
constexpr int SPINS = 10000;      // how often a thread looks for work before it sleeps, about 0.2 ms
constexpr size_t IDLE_STATES = 16;
constexpr float NEVER = -std::numeric_limits<float>::infinity();

// The loops over rows and registers of a tile: unrolled, their sums are registers and not an array in memory.
#define UNROLL _Pragma("GCC unroll 16")

size_t up(size_t n, size_t to) { return (n + to - 1) / to * to; }

// Memory that grows, and forgets its content then.
template <class T>
class Buffer {
    T* data = nullptr;
    size_t size = 0;

public:
    Buffer() = default;
    Buffer(const Buffer&) = delete;
    ~Buffer() { std::free(data); }
    T* get(size_t n) {
        if (n > size) {
            std::free(data);
            data = static_cast<T*>(std::aligned_alloc(64, up(n * sizeof(T), 64)));
            size = data ? n : 0;
            if (!data) throw std::bad_alloc();
        }
        return data;
    }
    T* get() const { return data; }
};

// Threads that share the steps of a pass. Each does the next part that nobody has begun, so that what a sleeping thread
// has not begun the others do.
class Team {
    std::vector<std::thread> others;
    std::atomic<uint64_t> next{0};  // how many parts the step has, and the next of them, 32 bits each
    std::atomic<uint32_t> done{0}, passes{0};
    std::atomic<bool> active{false}, ended{false};
    // Of the step, until all its parts are done.
    void (*call)(const void* f, size_t first, size_t last, size_t thread) = nullptr;
    const void* function = nullptr;
    size_t count = 0;

    // Do the next part; returns whether there was one.
    bool help(size_t thread) {
        uint64_t now = next.load(std::memory_order_acquire);
        const size_t part = now & 0xffffffff, parts = now >> 32;
        if (part >= parts || !next.compare_exchange_strong(now, now + 1)) return part < parts;
        call(function, count * part / parts, count * (part + 1) / parts, thread);
        done.fetch_add(1, std::memory_order_release);
        return true;
    }

    void follow(size_t thread) {
        for (;;) {
            const uint32_t seen = passes.load();
            if (ended) return;
            for (int spins = 0; spins < SPINS || active.load(std::memory_order_relaxed); spins++)
                if (!help(thread)) _mm_pause();
            passes.wait(seen);
        }
    }

public:
    // With fewer threads than wanted where no more can be started.
    explicit Team(size_t wanted) {
        try {
            while (size() < wanted) others.emplace_back([this, thread = size()] { follow(thread); });
        } catch (const std::system_error&) {
        }
    }

    ~Team() {
        ended = true;
        begin();
        end();
        for (auto& thread : others) thread.join();
    }

    size_t size() const { return others.size() + 1; }

    // Wake the others: steps follow.
    void begin() {
        active = true;
        passes.fetch_add(1);
        passes.notify_all();
    }

    void end() { active = false; }

    // Call f(i, thread) for all i < n.
    template <class F>
    void step(size_t n, const F& f) {
        const uint64_t parts = std::min(n, size() > 1 ? 8 * size() : 1);
        call = [](const void* given, size_t first, size_t last, size_t thread) {
            for (size_t i = first; i < last; i++) (*static_cast<const F*>(given))(i, thread);
        };
        function = &f, count = n;
        done.store(0, std::memory_order_relaxed);
        next.store(parts << 32, std::memory_order_release);
        while (help(0)) {}
        for (int spins = 0; done.load(std::memory_order_acquire) < parts; spins++)
            if (spins < SPINS) _mm_pause();
            else std::this_thread::yield();
    }
};

// Call f<R>(n) for R rows from n on, parts as equal as can be of at most MOST rows.
template <int MOST, class F>
void by_rows(size_t n, size_t end, F f) {
    auto call = [&]<int R>(auto self, size_t wanted) -> void {
        if (wanted == R) return f.template operator()<R>(n);
        if constexpr (R > 1) self.template operator()<R - 1>(self, wanted);
    };
    while (n < end) {
        const size_t left = end - n, parts = (left + MOST - 1) / MOST, R = (left + parts - 1) / parts;
        call.template operator()<MOST>(call, R);
        n += R;
    }
}

// -- sixteen numbers ------------------------------------------------------------------------------------------

// Both are written out, as GCC moves sums to and fro between registers.
inline void multiply_add(__m512i& sum, __m512i columns, __m512i row) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(columns), "v"(row));
}

// With *half* each float stands for a pair of bf16, whose two products are added.
template <bool half>
inline void multiply_add(__m512& sum, __m512 columns, __m512 row) {
    if constexpr (half) asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(columns), "v"(row));
    else asm("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(columns), "v"(row));
}

// Sixteen pairs of bf16.
inline __m512 paired(__m512 first, __m512 second) {
    __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(first));
    __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(second));
    return _mm512_castsi512_ps(_mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
}

// Two to the power of x, to 1e-7 of itself; of less than -126 the same as of -126, 1e-38.
inline __m512 power_of_two(__m512 x) {
    x = _mm512_max_ps(x, _mm512_set1_ps(-126));
    __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT), r = _mm512_sub_ps(x, n);
    __m512 p = _mm512_set1_ps(1.535336188e-4f);  // Cephes' exp2f
    for (float c : {1.339887440e-3f, 9.618437357e-3f, 5.550332471e-2f, 2.402264791e-1f, 6.931472028e-1f, 1.f})
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
    return _mm512_scalef_ps(p, n);
}

constexpr float LOG2_E = 1.44269504f;

// To |x| times 1e-7 of itself.
inline __m512 exponential(__m512 x) { return power_of_two(_mm512_mul_ps(x, _mm512_set1_ps(LOG2_E))); }

inline __m512 sigmoid(__m512 x) {
    __m512 one = _mm512_set1_ps(1);
    return _mm512_div_ps(one, _mm512_add_ps(one, exponential(_mm512_sub_ps(_mm512_setzero_ps(), x))));
}

// x / 2 * (1 + erf(x / sqrt 2)), erf by Abramowitz and Stegun's 7.1.26, to 1.5e-7.
inline __m512 gelu(__m512 x) {
    __m512 one = _mm512_set1_ps(1), z = _mm512_mul_ps(_mm512_abs_ps(x), _mm512_set1_ps(0.70710678f));
    __m512 t = _mm512_div_ps(one, _mm512_fmadd_ps(z, _mm512_set1_ps(0.3275911f), one));
    __m512 p = _mm512_set1_ps(1.061405429f);
    for (float c : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f})
        p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(c));
    __m512 rest = _mm512_mul_ps(_mm512_mul_ps(p, t), exponential(_mm512_fnmadd_ps(z, z, _mm512_setzero_ps())));
    __m512 small = _mm512_mul_ps(_mm512_mul_ps(_mm512_set1_ps(0.5f), x), rest);  // rest = 1 - erf(z)
    return _mm512_mask_sub_ps(small, _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ), x, small);
}

enum class After { nothing, add, gelu, gelu_tanh, relu, silu };  // the activations as native.py numbers them

template <After after>
inline __m512 activate(__m512 x) {
    if constexpr (after == After::gelu) return gelu(x);
    if constexpr (after == After::relu) return _mm512_max_ps(x, _mm512_setzero_ps());
    if constexpr (after == After::silu) return _mm512_mul_ps(x, sigmoid(x));
    if constexpr (after == After::gelu_tanh) {  // tanh(y) = 2 sigmoid(2 y) - 1
        __m512 cube = _mm512_mul_ps(_mm512_mul_ps(x, x), _mm512_mul_ps(x, _mm512_set1_ps(0.044715f)));
        return _mm512_mul_ps(x, sigmoid(_mm512_mul_ps(_mm512_add_ps(x, cube), _mm512_set1_ps(1.59576912f))));
    }
    return x;
}

inline float dot(const float* a, const float* b, size_t n) {
    __m512 sum = _mm512_setzero_ps();
    for (size_t i = 0; i < n; i += LANES) sum = _mm512_fmadd_ps(_mm512_loadu_ps(a + i), _mm512_loadu_ps(b + i), sum);
    return _mm512_reduce_add_ps(sum);
}

// -- rows -----------------------------------------------------------------------------------------------------

// Rows (N, I) rounded to 8 bits, a scale for each.
struct Rounded {
    Buffer<int8_t> values;
    Buffer<float> scales;
    Buffer<int32_t> corrections;  // 128 times the sum of a row: matrices have 128 added
    size_t I = 0;

    void reserve(size_t N, size_t inputs) {
        I = inputs;
        values.get(N * I), scales.get(N), corrections.get(N);
    }

    void set(size_t n, const float* x) {
        __m512 most = _mm512_setzero_ps();
        for (size_t i = 0; i < I; i += LANES) most = _mm512_max_ps(most, _mm512_abs_ps(_mm512_loadu_ps(x + i)));
        float scale = _mm512_reduce_max_ps(most) * (1 / 127.f);
        __m512 by = _mm512_set1_ps(scale > 0 ? 1 / scale : 0);
        __m512i sum = _mm512_setzero_si512();
        int8_t* to = values.get() + n * I;
        for (size_t i = 0; i < I; i += LANES) {
            __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + i), by));
            sum = _mm512_add_epi32(sum, q);
            _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), _mm512_cvtsepi32_epi8(q));
        }
        scales.get()[n] = scale;
        corrections.get()[n] = 128 * _mm512_reduce_add_epi32(sum);
    }
};

struct Norm {
    const float *weight = nullptr, *bias = nullptr;

    void operator()(float* x, size_t D, float eps) const {
        __m512 sum = _mm512_setzero_ps(), squares = _mm512_setzero_ps();
        for (size_t i = 0; i < D; i += LANES) sum = _mm512_add_ps(sum, _mm512_loadu_ps(x + i));
        __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / D);
        for (size_t i = 0; i < D; i += LANES) {
            __m512 from = _mm512_sub_ps(_mm512_loadu_ps(x + i), mean);
            squares = _mm512_fmadd_ps(from, from, squares);
        }
        __m512 by = _mm512_set1_ps(1 / std::sqrt(_mm512_reduce_add_ps(squares) / D + eps));
        for (size_t i = 0; i < D; i += LANES) {
            __m512 y = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(x + i), mean), by);
            _mm512_storeu_ps(x + i, _mm512_fmadd_ps(y, _mm512_loadu_ps(weight + i), _mm512_loadu_ps(bias + i)));
        }
    }
};

// -- products -------------------------------------------------------------------------------------------------

// A matrix (O, I) in the order in which products read it: by blocks of outputs, in a block four inputs of all
// outputs after four others. 128 is added, as the instruction multiplies unsigned by signed bytes.
struct Matrix {
    size_t O = 0, I = 0;
    Buffer<uint8_t> packed;
    Buffer<float> scales, bias;  // (O), and zeros up to whole blocks

    size_t blocks() const { return up(O, BLOCK) / BLOCK; }
    const uint8_t* block(size_t j) const { return packed.get() + j * I * BLOCK; }

    void set(const int8_t* values, const float* given_scales, const float* given_bias, size_t outputs, size_t inputs) {
        O = outputs, I = inputs;
        const size_t all = up(O, BLOCK);
        std::memset(packed.get(all * I), 128, all * I);
        std::fill_n(scales.get(all), all, 0.f);
        std::fill_n(bias.get(all), all, 0.f);
        std::copy_n(given_scales, O, scales.get());
        std::copy_n(given_bias, O, bias.get());
        for (size_t o = 0; o < O; o++)
            for (size_t i = 0; i < I; i++)
                packed.get()[o / BLOCK * BLOCK * I + i / 4 * 4 * BLOCK + o % BLOCK * 4 + i % 4] =
                    uint8_t(values[o * I + i] + 128);
    }
};

// R rows from n on times a block of outputs; *out* is where row n's begin, *stride* from row to row.
// Inlined it would run short of registers.
template <int R, After after>
[[gnu::noinline]] void tile(const Rounded& x, size_t n, const Matrix& w, size_t j, float* out, size_t stride) {
    const size_t I = w.I;
    const uint8_t* columns = w.block(j);
    const int8_t* rows = x.values.get() + n * I;
    __m512i sums[R][2];
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int c = 0; c < 2; c++) sums[r][c] = _mm512_setzero_si512();
    for (size_t i = 0; i < I; i += 4, columns += 4 * BLOCK) {
        __m512i column[2];
        UNROLL for (int c = 0; c < 2; c++) {
            column[c] = _mm512_load_si512(columns + 64 * c);
            _mm_prefetch(reinterpret_cast<const char*>(columns + 64 * c + AHEAD), _MM_HINT_T1);
        }
        UNROLL for (int r = 0; r < R; r++) {
            int32_t four;
            std::memcpy(&four, rows + r * I + i, 4);
            __m512i row = _mm512_set1_epi32(four);
            UNROLL for (int c = 0; c < 2; c++) multiply_add(sums[r][c], column[c], row);
        }
    }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int c = 0; c < 2; c++) {
            const size_t o = j * BLOCK + LANES * c;
            if (o >= w.O) continue;  // O is a multiple of 16, not of 32
            __m512i sum = _mm512_sub_epi32(sums[r][c], _mm512_set1_epi32(x.corrections.get()[n + r]));
            __m512 y = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_load_ps(w.scales.get() + o));
            y = _mm512_fmadd_ps(y, _mm512_set1_ps(x.scales.get()[n + r]), _mm512_load_ps(w.bias.get() + o));
            float* to = out + r * stride + o;
            if constexpr (after == After::add) y = _mm512_add_ps(y, _mm512_loadu_ps(to));
            _mm512_storeu_ps(to, activate<after>(y));
        }
}

// Rows n to end times the matrix. Threads share its blocks and, where those are few, parts of the rows.
template <After after>
void product(Team& team, const Rounded& x, size_t n, size_t end, const Matrix& w, float* out, size_t stride) {
    const size_t blocks = w.blocks(), wanted = 4 * team.size() / blocks;
    const size_t parts = std::clamp<size_t>(wanted, 1, std::max<size_t>(1, (end - n) / ROWS));
    team.step(blocks * parts, [&](size_t task, size_t) {
        const size_t j = task / parts, part = task % parts, size = (end - n + parts - 1) / parts;
        const size_t from = std::min(end, n + part * size), to = std::min(end, from + size);
        by_rows<ROWS>(from, to, [&]<int R>(size_t m) { tile<R, after>(x, m, w, j, out + (m - n) * stride, stride); });
    });
}

void product(After after, Team& team, const Rounded& x, size_t n, size_t end, const Matrix& w, float* out,
             size_t stride) {
    switch (after) {
        case After::nothing: return product<After::nothing>(team, x, n, end, w, out, stride);
        case After::add: return product<After::add>(team, x, n, end, w, out, stride);
        case After::gelu: return product<After::gelu>(team, x, n, end, w, out, stride);
        case After::gelu_tanh: return product<After::gelu_tanh>(team, x, n, end, w, out, stride);
        case After::relu: return product<After::relu>(team, x, n, end, w, out, stride);
        case After::silu: return product<After::silu>(team, x, n, end, w, out, stride);
    }
}

// -- attention ------------------------------------------------------------------------------------------------

// Keys and values of one head, in fp32 or, with *half*, in pairs of bf16 that fill a float: of a key two values after each
// other, and the same value of two keys. Rows see two of them: a source's, and their own.
struct Seen {
    const float *keys, *values;  // (d, padded), (count, d); with half (d / 2, padded), (count / 2, d)
    size_t count, padded;
    const float* bias;  // what is added to the first row's score of the first key, of the next row one before; or none
};

// How many floats keys and values of one head take.
size_t head_size(bool half, size_t d, size_t count) {
    return half ? d / 2 * up(count, LANES) + (count + 1) / 2 * d : d * up(count, LANES) + d * count;
}

// R rows' scores of C registers of keys from k on. Rows of queries and of scores follow each other in steps.
template <bool half, int R, int C>
void score(const float* queries, size_t step, size_t d, const Seen& seen, size_t k, float* scores, size_t width,
           __m512* highest) {
    __m512 sums[R][C];
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int c = 0; c < C; c++) sums[r][c] = _mm512_setzero_ps();
    const float* keys = seen.keys + k;
    for (size_t i = 0; i < (half ? d / 2 : d); i++, keys += seen.padded) {
        __m512 column[C];
        UNROLL for (int c = 0; c < C; c++) column[c] = _mm512_loadu_ps(keys + LANES * c);
        UNROLL for (int r = 0; r < R; r++) {
            __m512 row = _mm512_set1_ps(queries[r * step + i]);
            UNROLL for (int c = 0; c < C; c++) multiply_add<half>(sums[r][c], column[c], row);
        }
    }
    // Times log2 e, so that the softmax is of powers of two.
    const __m512 scale = _mm512_set1_ps(LOG2_E / std::sqrt(float(d))), of_bias = _mm512_set1_ps(LOG2_E);
    UNROLL for (int c = 0; c < C; c++) {
        const size_t from = k + LANES * c, left = seen.count > from ? seen.count - from : 0;
        const __mmask16 real = left >= LANES ? 0xffff : (1u << left) - 1;
        UNROLL for (int r = 0; r < R; r++) {
            __m512 s = _mm512_mul_ps(sums[r][c], scale);
            if (seen.bias) s = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(real, seen.bias + from - r), of_bias, s);
            s = _mm512_mask_mov_ps(_mm512_set1_ps(NEVER), real, s);
            highest[r] = _mm512_max_ps(highest[r], s);
            _mm512_store_ps(scores + r * width + from, s);
        }
    }
}

// R rows' sums of C registers of values, from value i on, each by its weight and the row by *by*.
template <bool half, int R, int C>
void weigh(const float* weights, size_t width, const Seen (&seen)[2], size_t d, size_t i, const __m512* by, float* out,
           size_t stride) {
    __m512 sums[R][C];
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int c = 0; c < C; c++) sums[r][c] = _mm512_setzero_ps();
    for (const Seen& part : seen) {
        const float* values = part.values + i;
        for (size_t k = 0; k < (half ? (part.count + 1) / 2 : part.count); k++, values += d) {
            __m512 column[C];
            UNROLL for (int c = 0; c < C; c++) column[c] = _mm512_loadu_ps(values + LANES * c);
            UNROLL for (int r = 0; r < R; r++) {
                __m512 row = _mm512_set1_ps(weights[r * width + k]);
                UNROLL for (int c = 0; c < C; c++) multiply_add<half>(sums[r][c], column[c], row);
            }
        }
        weights += half ? part.padded / 2 : part.padded;
    }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int c = 0; c < C; c++)
            _mm512_storeu_ps(out + r * stride + i + LANES * c, _mm512_mul_ps(sums[r][c], by[r]));
}

// One head of R rows. *scores* is space for them, (R, padded keys); with *half* weights take their places, in pairs.
template <bool half, int R>
void attend(const float* queries, size_t step, size_t d, const Seen (&seen)[2], float* scores, float* out,
            size_t stride) {
    const size_t width = seen[0].padded + seen[1].padded;
    __m512 highest[R], by[R];
    std::fill_n(highest, R, _mm512_set1_ps(NEVER));
    float* at = scores;
    for (const Seen& part : seen) {
        size_t k = 0;
        for (; k + 4 * LANES <= part.padded; k += 4 * LANES)
            score<half, R, 4>(queries, step, d, part, k, at, width, highest);
        for (; k < part.padded; k += LANES) score<half, R, 1>(queries, step, d, part, k, at, width, highest);
        at += part.padded;
    }
    for (int r = 0; r < R; r++) {
        __m512 most = _mm512_set1_ps(_mm512_reduce_max_ps(highest[r])), sum = _mm512_setzero_ps();
        float* row = scores + r * width;
        for (size_t k = 0; k < width; k += LANES) {
            __m512 e = power_of_two(_mm512_sub_ps(_mm512_load_ps(row + k), most));
            sum = _mm512_add_ps(sum, e);
            if constexpr (half) _mm256_store_si256(reinterpret_cast<__m256i*>(row + k / 2), (__m256i)_mm512_cvtneps_pbh(e));
            else _mm512_store_ps(row + k, e);
        }
        by[r] = _mm512_set1_ps(1 / _mm512_reduce_add_ps(sum));
    }
    size_t i = 0;
    for (; i + 4 * LANES <= d; i += 4 * LANES) weigh<half, R, 4>(scores, width, seen, d, i, by, out, stride);
    for (; i + 2 * LANES <= d; i += 2 * LANES) weigh<half, R, 2>(scores, width, seen, d, i, by, out, stride);
    for (; i < d; i += LANES) weigh<half, R, 1>(scores, width, seen, d, i, by, out, stride);
}

// -- the model ------------------------------------------------------------------------------------------------

struct Layer {
    Matrix qkv, attention_output, ffn_in, ffn_out;
    Norm attention_norm, ffn_norm;
};

// What a pass computes in between.
struct Workspace {
    Rounded x, inner, embedded;
    Buffer<float> hidden, qkv, attended, wide, keys, queries, scores, logits, copying;
    Buffer<size_t> masked;
};

}  // namespace

// As native.py has it.
struct Sizes {
    int64_t hidden_size, embedding_size, ffn_size, heads, layers, distinct_layers, length_classes, farthest;
    int64_t activation, mask, threads, half;
    double eps;
};

// A source's keys and values, (layers, H, head_size).
using State = Buffer<float>;

struct Model {
    Sizes size;
    const int8_t* words = nullptr;
    const float *word_scales = nullptr, *positions = nullptr, *types = nullptr;
    const float* distances = nullptr;  // (H, 2 farthest + 1), what attention adds by distance, or none
    const float *length_head = nullptr, *copy_weight = nullptr, *copy_bias = nullptr;
    Norm embedding_norm, head_norm;
    Matrix embedding_projection, transform, head;
    std::vector<Layer> layers;
    std::mutex mutex;  // passes take turns, as there is one of these
    Team team;
    Workspace space;
    std::mutex states_mutex;
    std::vector<std::unique_ptr<State>> idle_states;

    explicit Model(const Sizes& size) : size(size), layers(size.distinct_layers), team(size.threads) {}
};

// One sentence's rows, as native.py has it.
struct Sentence {
    State* state;         // to be written, of a source
    const State* past;    // of a target's source
    const float* hidden;  // of a target's source, for the copy head
    const int64_t* tokens;
    int64_t count;        // of the source
};

namespace {

void embed(Model& m, size_t N, const int64_t* tokens, const int64_t* positions, int64_t type, float* hidden) {
    Workspace& space = m.space;
    const size_t D = m.size.hidden_size, E = m.size.embedding_size;
    const bool projected = m.embedding_projection.O > 0;
    m.team.step(N, [&](size_t n, size_t) {
        float* row = projected ? space.attended.get() + n * E : hidden + n * E;
        const int8_t* word = m.words + tokens[n] * E;
        const float *position = m.positions + positions[n] * E, *kind = m.types + type * E;
        const __m512 scale = _mm512_set1_ps(m.word_scales[tokens[n]]);
        for (size_t i = 0; i < E; i += LANES) {
            __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(word + i));
            __m512 x = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
            x = _mm512_add_ps(_mm512_fmadd_ps(x, scale, _mm512_loadu_ps(position + i)), _mm512_loadu_ps(kind + i));
            _mm512_storeu_ps(row + i, x);
        }
        m.embedding_norm(row, E, m.size.eps);
        (projected ? space.embedded : space.x).set(n, row);
    });
    if (!projected) return;
    product<After::nothing>(m.team, space.embedded, 0, N, m.embedding_projection, hidden, D);
    m.team.step(N, [&](size_t n, size_t) { space.x.set(n, hidden + n * D); });
}

// Put a sentence's keys and values of one head, of joint queries, keys and values (N, 3 D), where attention reads them.
template <bool half>
void arrange(const float* joint, size_t D, size_t d, size_t count, float* keys, float* values) {
    const size_t padded = up(count, LANES);
    const __m512i each = _mm512_mullo_epi32(
        _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), _mm512_set1_epi32(3 * D));
    for (size_t k = 0; k < count; k += LANES) {
        const __mmask16 real = count - k >= LANES ? 0xffff : (1u << (count - k)) - 1;
        auto key = [&](size_t i) {
            const float* from = joint + k * 3 * D + D + i;
            return _mm512_mask_i32gather_ps(_mm512_setzero_ps(), real, each, from, sizeof(float));
        };
        for (size_t i = 0; i < d; i += half ? 2 : 1) {
            if constexpr (half) _mm512_storeu_ps(keys + i / 2 * padded + k, paired(key(i), key(i + 1)));
            else _mm512_storeu_ps(keys + i * padded + k, key(i));
        }
    }
    for (size_t k = 0; k < count; k += half ? 2 : 1)
        for (size_t i = 0; i < d; i += LANES) {
            const float* from = joint + k * 3 * D + 2 * D + i;
            __m512 value = _mm512_loadu_ps(from);
            if constexpr (half) value = paired(value, k + 1 < count ? _mm512_loadu_ps(from + 3 * D) : _mm512_setzero_ps());
            _mm512_storeu_ps(values + (half ? k / 2 : k) * d + i, value);
        }
}

// All heads' attention of one layer over joint queries, keys and values.
template <bool half>
void attention(Model& m, size_t l, size_t B, const int64_t* starts, const Sentence* sentences,
               size_t longest, size_t widest) {
    Workspace& space = m.space;
    const size_t D = m.size.hidden_size, H = m.size.heads, d = D / H;
    m.team.step(B * H, [&](size_t task, size_t thread) {
        float* scores = space.scores.get() + thread * QUERIES * widest;
        const size_t b = task / H, h = task % H;
        const Sentence& sentence = sentences[b];
        const size_t first = starts[b], count = starts[b + 1] - first, padded = up(count, LANES);
        const float* joint = space.qkv.get() + first * 3 * D + h * d;
        float* keys = sentence.state ? sentence.state->get() + (l * H + h) * head_size(half, d, count)
                                     : space.keys.get() + thread * 2 * d * longest;
        float* values = keys + (half ? d / 2 : d) * padded;
        arrange<half>(joint, D, d, count, keys, values);

        const float* queries = joint;
        size_t step = 3 * D;
        if constexpr (half) {
            float* pairs = space.queries.get() + thread * d * longest;
            for (size_t r = 0; r < count; r++)
                for (size_t i = 0; i < d; i += LANES)
                    _mm256_store_si256(reinterpret_cast<__m256i*>(pairs + (r * d + i) / 2),
                                       (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(joint + r * 3 * D + i)));
            queries = pairs, step = d / 2;
        }
        const size_t P = sentence.past ? sentence.count : 0, P_padded = up(P, LANES);
        const float* past = sentence.past ? sentence.past->get() + (l * H + h) * head_size(half, d, P) : nullptr;
        const float* past_values = sentence.past ? past + (half ? d / 2 : d) * P_padded : nullptr;
        const float* same = m.distances ? m.distances + h * (2 * m.size.farthest + 1) + m.size.farthest : nullptr;
        float* out = space.attended.get() + first * D + h * d;
        by_rows<QUERIES>(0, count, [&]<int R>(size_t r) {
            const Seen seen[2] = {{past, past_values, P, P_padded, same ? same - P - r : nullptr},
                                  {keys, values, count, padded, same ? same - r : nullptr}};
            attend<half, R>(queries + r * step, step, d, seen, scores, out + r * D, D);
        });
    });
}

// Last hidden states (N, D) of all rows.
void run(Model& m, size_t B, const int64_t* starts, const int64_t* tokens, const int64_t* positions, int64_t type,
         const Sentence* sentences, float* hidden) {
    Workspace& space = m.space;
    const size_t D = m.size.hidden_size, E = m.size.embedding_size, F = m.size.ffn_size, N = starts[B];
    const size_t threads = m.size.threads, d = D / m.size.heads;
    const After activation = After(m.size.activation);
    size_t longest = 0, widest = 0;
    for (size_t b = 0; b < B; b++) {
        const size_t padded = up(starts[b + 1] - starts[b], LANES);
        longest = std::max(longest, padded);
        widest = std::max(widest, padded + (sentences[b].past ? up(sentences[b].count, LANES) : 0));
    }
    space.x.reserve(N, D), space.inner.reserve(N, F), space.embedded.reserve(N, E);
    space.qkv.get(N * 3 * D), space.attended.get(std::max(N, B) * std::max(D, E)), space.wide.get(N * F);
    space.keys.get(threads * 2 * d * longest), space.queries.get(threads * d * longest);
    space.scores.get(threads * QUERIES * widest);

    embed(m, N, tokens, positions, type, hidden);
    for (int64_t l = 0; l < m.size.layers; l++) {
        const Layer& layer = m.layers[l % m.layers.size()];
        product<After::nothing>(m.team, space.x, 0, N, layer.qkv, space.qkv.get(), 3 * D);
        (m.size.half ? attention<true> : attention<false>)(m, l, B, starts, sentences, longest, widest);
        m.team.step(N, [&](size_t n, size_t) { space.x.set(n, space.attended.get() + n * D); });
        product<After::add>(m.team, space.x, 0, N, layer.attention_output, hidden, D);
        m.team.step(N, [&](size_t n, size_t) {
            layer.attention_norm(hidden + n * D, D, m.size.eps);
            space.x.set(n, hidden + n * D);
        });
        product(activation, m.team, space.x, 0, N, layer.ffn_in, space.wide.get(), F);
        m.team.step(N, [&](size_t n, size_t) { space.inner.set(n, space.wide.get() + n * F); });
        product<After::add>(m.team, space.inner, 0, N, layer.ffn_out, hidden, D);
        m.team.step(N, [&](size_t n, size_t) {
            layer.ffn_norm(hidden + n * D, D, m.size.eps);
            space.x.set(n, hidden + n * D);
        });
    }
}

// Each sentence's logits of lengths (B, classes), from the mean of its rows.
void score_lengths(Model& m, size_t B, const int64_t* starts, const float* hidden, float* scores) {
    const size_t D = m.size.hidden_size, classes = m.size.length_classes;
    float* means = m.space.attended.get();
    m.team.step(B, [&](size_t b, size_t) {
        for (size_t i = 0; i < D; i += LANES) {
            __m512 sum = _mm512_setzero_ps();
            for (int64_t n = starts[b]; n < starts[b + 1]; n++)
                sum = _mm512_add_ps(sum, _mm512_loadu_ps(hidden + n * D + i));
            _mm512_storeu_ps(means + b * D + i, _mm512_div_ps(sum, _mm512_set1_ps(starts[b + 1] - starts[b])));
        }
    });
    m.team.step(B * classes, [&](size_t i, size_t) {
        scores[i] = dot(means + i / classes * D, m.length_head + i % classes * D, D);
    });
}

// Adds to a row's logits what can be copied: the source's tokens, each scored from all its places together.
void add_copies(const float* query, const Sentence& sentence, size_t D, float* scores, float* logits) {
    const size_t P = sentence.count;
    float highest = NEVER;
    for (size_t p = 0; p < P; p++) {
        scores[p] = dot(query, sentence.hidden + p * D, D) / std::sqrt(float(D));
        highest = std::max(highest, scores[p]);
    }
    for (size_t p = 0; p < P; p++) {
        const int64_t token = sentence.tokens[p];
        if (std::find(sentence.tokens, sentence.tokens + p, token) != sentence.tokens + p) continue;
        float odds = std::numeric_limits<float>::min(), &logit = logits[token];
        for (size_t other = p; other < P; other++)
            if (sentence.tokens[other] == token) odds += std::exp(scores[other] - highest);
        const float copied = std::log(odds) + highest, most = std::max(logit, copied);
        if (logit > NEVER) logit = most + std::log1p(std::exp(std::min(logit, copied) - most));
    }
}

// The place of a row's highest logit, the first of equal ones.
size_t highest_place(const float* logits, size_t V) {
    __m512 most = _mm512_set1_ps(NEVER);
    for (size_t v = 0; v < V; v += LANES) most = _mm512_max_ps(most, _mm512_loadu_ps(logits + v));
    const __m512 highest = _mm512_set1_ps(_mm512_reduce_max_ps(most));
    for (size_t v = 0; v < V; v += LANES)
        if (__mmask16 here = _mm512_cmp_ps_mask(_mm512_loadu_ps(logits + v), highest, _CMP_EQ_OQ))
            return v + __builtin_ctz(here);
    return 0;
}

// Replace every [MASK] among the tokens by the likeliest token, or the second likeliest, and give its log-probability.
// If there is *allowed*, a truth value for each token, the others are not chosen.
void predict(Model& m, size_t B, const int64_t* starts, const Sentence* sentences, const float* hidden, bool second,
             const bool* allowed, int64_t* tokens, float* scores) {
    Workspace& space = m.space;
    const size_t D = m.size.hidden_size, E = m.size.embedding_size, N = starts[B], wide = m.head.blocks() * BLOCK;
    size_t *masked = space.masked.get(2 * N), *owner = masked + N, M = 0, longest = 0;
    for (size_t b = 0; b < B; b++) {
        longest = std::max<size_t>(longest, sentences[b].count);
        for (int64_t n = starts[b]; n < starts[b + 1]; n++)
            if (tokens[n] == m.size.mask) masked[M] = n, owner[M++] = b;
    }
    std::fill_n(scores, N, 0.f);
    const size_t threads = m.size.threads, some = std::min(M, LOGITS);
    space.x.reserve(M, D), space.embedded.reserve(M, E);
    space.wide.get(M * E), space.logits.get(some * wide);
    if (m.copy_weight) space.copying.get(threads * (D + longest));

    m.team.step(M, [&](size_t i, size_t) { space.x.set(i, hidden + masked[i] * D); });
    product(After(m.size.activation), m.team, space.x, 0, M, m.transform, space.wide.get(), E);
    m.team.step(M, [&](size_t i, size_t) {
        m.head_norm(space.wide.get() + i * E, E, m.size.eps);
        space.embedded.set(i, space.wide.get() + i * E);
    });
    for (size_t from = 0; from < M; from += LOGITS) {
        const size_t end = std::min(M, from + LOGITS);
        product<After::nothing>(m.team, space.embedded, from, end, m.head, space.logits.get(), wide);
        m.team.step(end - from, [&](size_t at, size_t thread) {
            float* row = space.logits.get() + at * wide;
            const size_t n = masked[from + at];
            if (m.copy_weight) {
                float* query = space.copying.get() + thread * (D + longest);
                for (size_t o = 0; o < D; o++)
                    query[o] = dot(m.copy_weight + o * D, hidden + n * D, D) + m.copy_bias[o];
                add_copies(query, sentences[owner[from + at]], D, query + D, row);
            }
            size_t chosen = highest_place(row, wide);
            const __m512 most = _mm512_set1_ps(row[chosen]);
            __m512 sum = _mm512_setzero_ps();
            for (size_t v = 0; v < wide; v += LANES)
                sum = _mm512_add_ps(sum, exponential(_mm512_sub_ps(_mm512_loadu_ps(row + v), most)));
            const float total = row[chosen] + std::log(_mm512_reduce_add_ps(sum));
            if (allowed) {
                for (size_t v = 0; v < wide; v++)
                    if (!allowed[v]) row[v] = NEVER;
                chosen = highest_place(row, wide);
            }
            if (second) row[chosen] = NEVER, chosen = highest_place(row, wide);
            tokens[n] = chosen, scores[n] = row[chosen] - total;
        });
    }
}

// While this is there, no other pass is.
class Pass {
    Model& model;
    std::lock_guard<std::mutex> turn;

public:
    explicit Pass(Model& model) : model(model), turn(model.mutex) { model.team.begin(); }
    ~Pass() { model.team.end(); }
};

// Call *work*; returns whether there was memory enough.
template <class F>
bool enough_memory(F work) {
    try {
        work();
        return true;
    } catch (const std::bad_alloc&) {
        return false;
    }
}

}  // namespace

extern "C" {

// What native.py compares with the file beside it.
int64_t mist_source() { return SOURCE; }

Model* mist_model(const Sizes* size) {
    Model* model = nullptr;
    enough_memory([&] { model = new Model(*size); });
    return model;
}

void mist_free(Model* model) { delete model; }

// Take a matrix (O, I), its scales (O) and its bias (O).
bool mist_matrix(Model* m, const char* name, int64_t layer, const int8_t* values, const float* scales,
                 const float* bias, int64_t O, int64_t I) {
    Layer* at = layer < 0 ? nullptr : &m->layers[layer];
    const std::string given = name;
    Matrix& matrix = given == "qkv"                 ? at->qkv
                     : given == "attention_output"  ? at->attention_output
                     : given == "ffn_in"            ? at->ffn_in
                     : given == "ffn_out"           ? at->ffn_out
                     : given == "head.transform"    ? m->transform
                     : given == "head"              ? m->head
                                                    : m->embedding_projection;
    return enough_memory([&] { matrix.set(values, scales, bias, O, I); });
}

// Keep a pointer to a LayerNorm's weight and bias.
void mist_norm(Model* m, const char* name, int64_t layer, const float* weight, const float* bias) {
    const std::string given = name;
    Norm& norm = given == "embedding_norm"   ? m->embedding_norm
                 : given == "head.norm"      ? m->head_norm
                 : given == "attention_norm" ? m->layers[layer].attention_norm
                                             : m->layers[layer].ffn_norm;
    norm.weight = weight, norm.bias = bias;
}

// Keep pointers to tables; distances and copy head may be none.
void mist_tables(Model* m, const int8_t* words, const float* word_scales, const float* positions, const float* types,
                 const float* length_head, const float* distances, const float* copy_weight, const float* copy_bias) {
    m->words = words, m->word_scales = word_scales, m->positions = positions, m->types = types;
    m->length_head = length_head, m->distances = distances, m->copy_weight = copy_weight, m->copy_bias = copy_bias;
}

// Memory for the state of a source of so many tokens; none if there is not enough.
State* mist_take(Model* m, int64_t count) {
    State* state = nullptr;
    enough_memory([&] {
        std::lock_guard lock(m->states_mutex);
        if (m->idle_states.empty()) m->idle_states.push_back(std::make_unique<State>());
        const size_t d = m->size.hidden_size / m->size.heads;
        m->idle_states.back()->get(m->size.layers * m->size.heads * head_size(m->size.half, d, count));
        state = m->idle_states.back().release();
        m->idle_states.pop_back();
    });
    return state;
}

// Give it back, also to a model that is gone.
void mist_give(Model* m, State* state) {
    std::unique_ptr<State> given(state);
    if (!m) return;
    std::lock_guard lock(m->states_mutex);
    if (m->idle_states.size() < IDLE_STATES) m->idle_states.push_back(std::move(given));
}

// Encode sources: their states, last hidden states (N, D) and logits of lengths (B, classes).
bool mist_encode(Model* m, int64_t B, const int64_t* starts, const int64_t* tokens, const int64_t* positions,
                 int64_t type, const Sentence* sentences, float* hidden, float* length_scores) {
    return enough_memory([&] {
        Pass pass(*m);
        run(*m, B, starts, tokens, positions, type, sentences, hidden);
        score_lengths(*m, B, starts, hidden, length_scores);
    });
}

// Fill the [MASK]s of targets: *tokens* are replaced in place. *scores* (N).
bool mist_fill(Model* m, int64_t B, const int64_t* starts, int64_t* tokens, const int64_t* positions, int64_t type,
               const Sentence* sentences, bool second, const bool* allowed, float* scores) {
    return enough_memory([&] {
        Pass pass(*m);
        float* hidden = m->space.hidden.get(starts[B] * m->size.hidden_size);
        run(*m, B, starts, tokens, positions, type, sentences, hidden);
        predict(*m, B, starts, sentences, hidden, second, allowed, tokens, scores);
    });
}

}
