# Writes what _native was built for beside it, where Python can read it without loading _native (see lepton_mpi/native.py).
execute_process(COMMAND "${readelf}" -d "${library}" OUTPUT_VARIABLE dynamic COMMAND_ERROR_IS_FATAL ANY)
string(REGEX MATCH "NEEDED[^\n]*\\[(lib[a-z_]*mpi[^]]*)\\]" _ "${dynamic}")
set(soname "${CMAKE_MATCH_1}")
if(soname STREQUAL "")
  message(FATAL_ERROR "${library} needs no shared MPI library: MPI must be linked dynamically, "
                      "or the process would hold two copies of it (the other is mpi4py's). MPI compiler: ${mpicc}")
endif()
get_filename_component(mpicc "${mpicc}" NAME)
file(WRITE "${output}"
  "{\"version\": \"${version}\", \"mpi_family\": \"${mpi_family}\", \"mpi_soname\": \"${soname}\", \"mpicc\": \"${mpicc}\"}\n")
