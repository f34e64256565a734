metadata notes = [
  'machine db gets the nearest size: Standard_D4s_v5'
  'machine db loses 1 NIC: Standard_D4s_v5 has 2'
]

@description('Region of the machines. It has to be that of the storage account.')
param location string = resourceGroup().location

@description('URL of the container that holds the page blobs, without a SAS')
param containerUri string = 'https://shop.blob.core.windows.net/vault'

@description('Resource id of the storage account that holds the page blobs')
param storageAccountId string = resourceId('Microsoft.Storage/storageAccounts', 'shop')

@description('Resource group of the virtual networks')
param networkGroup string = resourceGroup().name

@description('Kind of the managed disks')
@allowed([
  'Standard_LRS'
  'StandardSSD_LRS'
  'StandardSSD_ZRS'
  'Premium_LRS'
  'Premium_ZRS'
])
param diskSku string = 'StandardSSD_LRS'

resource machine1Os 'Microsoft.Compute/disks@2024-03-02' = {
  name: 'db-os'
  location: location
  sku: {
    name: diskSku
  }
  tags: {
    tidemarkDisk: 'pg-os'
    tidemarkPoint: 'bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb'
  }
  properties: {
    osType: 'Linux'
    hyperVGeneration: 'V2'
    creationData: {
      createOption: 'Import'
      sourceUri: '${containerUri}/dr/pg-os.vhd'
      storageAccountId: storageAccountId
    }
  }
}

resource machine1Data0 'Microsoft.Compute/disks@2024-03-02' = {
  name: 'db-data-0'
  location: location
  sku: {
    name: diskSku
  }
  tags: {
    tidemarkDisk: 'pg-data'
    tidemarkPoint: 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa'
  }
  properties: {
    creationData: {
      createOption: 'Import'
      sourceUri: '${containerUri}/dr/pg-data.vhd'
      storageAccountId: storageAccountId
    }
  }
}

resource machine1Nic0 'Microsoft.Network/networkInterfaces@2024-05-01' = {
  name: 'db-nic-0'
  location: location
  properties: {
    ipConfigurations: [
      {
        name: 'ipconfig1'
        properties: {
          subnet: {
            id: resourceId(networkGroup, 'Microsoft.Network/virtualNetworks/subnets', 'dr-vnet', 'dr-data')
          }
          privateIPAllocationMethod: 'Static'
          privateIPAddress: '10.0.0.4'
        }
      }
    ]
  }
}

resource machine1Nic1 'Microsoft.Network/networkInterfaces@2024-05-01' = {
  name: 'db-nic-1'
  location: location
  properties: {
    ipConfigurations: [
      {
        name: 'ipconfig1'
        properties: {
          subnet: {
            id: resourceId(networkGroup, 'Microsoft.Network/virtualNetworks/subnets', 'dr-vnet', 'backup')
          }
          privateIPAllocationMethod: 'Dynamic'
        }
      }
    ]
  }
}

resource machine1 'Microsoft.Compute/virtualMachines@2024-07-01' = {
  name: 'db'
  location: location
  tags: {
    tidemarkRun: '0badcafe'
  }
  properties: {
    hardwareProfile: {
      vmSize: 'Standard_D4s_v5'
    }
    storageProfile: {
      osDisk: {
        osType: 'Linux'
        createOption: 'Attach'
        managedDisk: {
          id: machine1Os.id
        }
      }
      dataDisks: [
        {
          lun: 0
          createOption: 'Attach'
          managedDisk: {
            id: machine1Data0.id
          }
        }
      ]
    }
    networkProfile: {
      networkInterfaces: [
        {
          id: machine1Nic0.id
          properties: {
            primary: true
          }
        }
        {
          id: machine1Nic1.id
          properties: {
            primary: false
          }
        }
      ]
    }
  }
}

resource machine2Os 'Microsoft.Compute/disks@2024-03-02' = {
  name: 'web-os'
  location: location
  sku: {
    name: diskSku
  }
  tags: {
    tidemarkDisk: 'web'
    tidemarkPoint: 'cccccccccccccccccccccccccccccccc'
  }
  properties: {
    osType: 'Windows'
    hyperVGeneration: 'V1'
    creationData: {
      createOption: 'Import'
      sourceUri: '${containerUri}/dr/web.vhd'
      storageAccountId: storageAccountId
    }
  }
}

resource machine2Nic0 'Microsoft.Network/networkInterfaces@2024-05-01' = {
  name: 'web-nic-0'
  location: location
  properties: {
    ipConfigurations: [
      {
        name: 'ipconfig1'
        properties: {
          subnet: {
            id: resourceId(networkGroup, 'Microsoft.Network/virtualNetworks/subnets', 'dr-vnet', 'front')
          }
          privateIPAllocationMethod: 'Dynamic'
        }
      }
    ]
  }
}

resource machine2 'Microsoft.Compute/virtualMachines@2024-07-01' = {
  name: 'web'
  location: location
  tags: {
    tidemarkRun: '0badcafe'
  }
  properties: {
    hardwareProfile: {
      vmSize: 'Standard_D2s_v5'
    }
    storageProfile: {
      osDisk: {
        osType: 'Windows'
        createOption: 'Attach'
        managedDisk: {
          id: machine2Os.id
        }
      }
      dataDisks: []
    }
    networkProfile: {
      networkInterfaces: [
        {
          id: machine2Nic0.id
          properties: {
            primary: true
          }
        }
      ]
    }
  }
  dependsOn: [
    machine1
  ]
}
