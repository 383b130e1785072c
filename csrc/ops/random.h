#pragma once

// torch's random numbers, for the kernels that draw them as stock's do.

#include <ATen/CPUGeneratorImpl.h>

#include <cmath>
#include <mutex>

#include "../kernels/dropout.h"

namespace rusttorch {

// f(twister) with the state of torch's own CPU generator, which is left in the state that f leaves.
template <class F>
void with_default_generator(F f) {
  auto* generator =
      at::get_generator_or_default<at::CPUGeneratorImpl>(std::nullopt, at::detail::getDefaultCPUGenerator());
  const std::lock_guard<std::mutex> lock(generator->mutex_);
  at::mt19937 engine = generator->engine();
  auto data = engine.data();
  Twister random{data.state_.data(), Twister::size + 1 - data.left_};
  f(random);
  data.left_ = Twister::size + 1 - random.next;
  data.next_ = uint32_t(random.next);
  engine.set_data(data);
  generator->set_engine(engine);
}

// An element is kept with probability 1 - p where a number of 53 bits is below this.
inline uint64_t kept_below(double p) { return uint64_t(std::ceil((1 - p) * 0x1p53)); }

}  // namespace rusttorch
