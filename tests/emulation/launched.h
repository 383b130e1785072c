#pragma once

// Which launchers exist and which were called, by name.

namespace emulation {

void exists(const char* launcher);
void launched(const char* launcher);

}  // namespace emulation
